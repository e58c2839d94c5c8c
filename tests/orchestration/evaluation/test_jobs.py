"""Evaluations that run by themselves: nothing is done twice, nothing is lost, whatever dies."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from echo_lm.models import build_model, save_pretrained
from echo_lm.models.common.files import write_json
from echo_lm.orchestration.evaluation import watcher as watch
from echo_lm.orchestration.evaluation.jobs import due_jobs, missing_jobs
from echo_lm.orchestration.evaluation.watcher import Watcher, evaluate_missing
from echo_lm.orchestration.jobs.executors import ProcessExecutor
from echo_lm.orchestration.jobs.job import run_under_leases
from echo_lm.orchestration.jobs.leases import claim, holder
from echo_lm.orchestration.jobs.scheduler import Scheduler
from echo_lm.pipeline.run.events import EventLog
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.ports import free_port

# Minutes on two free cores. This and what is waited for below only end a hang.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("forking")]

SUITE = """
name: {name}
recall:
  - {{task: niah, pairs: [1, 4], lengths: [64, 128], queries: {queries}}}
"""


@pytest.fixture
def suites(tmp_path):
    """A suite of a moment and one of some seconds."""
    paths = {}
    for name, queries in (("short", 16), ("long", 500)):
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(SUITE.format(name=name, queries=queries))
    return paths


@pytest.fixture
def run(tmp_path, data_root, smoke, suites) -> RunFolder:
    """A run with checkpoints of steps 10 and 20 that another program might have trained."""
    config = smoke(f"evaluation.suites=[{suites['short']}]", "run.workers=1")
    run = RunFolder(tmp_path / "runs" / "strange")
    run.prepare(config, data_root / config.data.name)
    model = build_model(config.model.resolve(vocab_size=512), seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    for step in (10, 20):
        folder = run.checkpoints / f"step_{step:08d}"
        save_pretrained(model, folder / "model")
        shutil.copy(run.data_folder() / "tokenizer.json", folder / "model")
        write_json(folder / "complete.json", {"step": step, "tokens": step * 512})
    return run


def results(run: RunFolder) -> dict[str, int]:
    return {f"{path.parent.name}/{path.stem}": path.stat().st_mtime_ns for path in run.evals.glob("*/*.json")}


def wait_for(condition, seconds: float = 300.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    pytest.fail("waited in vain")


def holder_of_some_lease(run: RunFolder):
    return next((lease_holder for path in run.evals.glob("*/*.lease") if (lease_holder := holder(path))), None)


def test_a_watcher_evaluates_runs_it_did_not_start_once(run, monkeypatch):
    monkeypatch.setattr(watch, "SYNC_SECONDS", 500)  # MLflow may take half a minute to make its database
    watcher = Watcher(f"{run.path.parent}/*", parallel=2, tracking_uri=f"sqlite:///{run.path.parent}/m.db")
    assert watcher.round()
    before = results(run)
    assert set(before) == {"step_00000010/short", "step_00000020/short"}
    assert not list(run.evals.glob("*/*.lease"))
    assert "niah-4" in (run.evals / "summary.md").read_text()
    assert list((run.evals / "figures").glob("*.png"))
    assert watcher.round()
    assert Watcher(f"{run.path.parent}/*", tracking_uri=watcher.uri).round()
    assert results(run) == before
    history = metric_history(watcher.uri, "eval/short/recall/niah-4/length-128")
    assert [step for step, _ in history] == [10, 20]


def test_what_mlflow_lacks_is_told_once(run, monkeypatch, caplog, capsys):
    """First it is down for two rounds, then it is not installed at all."""
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    nowhere = run.path.parent / "folder.db"
    nowhere.mkdir()
    watcher = Watcher(f"{run.path.parent}/*", tracking_uri=f"sqlite:///{nowhere}")
    assert [watcher.round(), watcher.round()] == [False, False]
    assert sum("the run goes on" in record.message for record in caplog.records) == 1
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else find(name))
    without = Watcher(f"{run.path.parent}/*")
    capsys.readouterr()
    assert without.round()
    run.evals.joinpath("step_00000010", "short.json").touch()
    assert without.round()
    assert capsys.readouterr().out.count("MLflow: not installed here") == 1


def metric_history(uri: str, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (record,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]  # the others are evaluations
    return sorted((point.step, point.value) for point in client.get_metric_history(record.info.run_id, key))


def test_a_killed_process_of_a_job_is_replaced(run, suites):
    killed = []

    def kill() -> None:
        lease_holder = wait_for(lambda: holder_of_some_lease(run))
        os.kill(lease_holder["pid"], signal.SIGKILL)
        killed.append(lease_holder["pid"])

    threading.Thread(target=kill, daemon=True).start()
    evaluate_missing(str(run.path), [str(suites["long"])], "cpu", ProcessExecutor(1))
    assert killed
    rows = [json.loads(path.read_text())["rows"] for path in sorted(run.evals.glob("*/long.json"))]
    assert len(rows) == 2
    assert rows[0] == rows[1], "the weights are the same"


def test_what_another_process_holds_is_left_to_it(run):
    job = missing_jobs(run, run.load_config())[0]
    with claim(job.output.with_suffix(".lease")):
        assert not run_under_leases(job)
        assert not job.output.exists()
    assert run_under_leases(job)
    assert job.output.exists()


def test_a_job_that_fails_is_given_up_and_the_others_are_done(run, capsys):
    broken = run.checkpoints / "step_00000010" / "model" / "model.safetensors"
    broken.write_bytes(b"x" * 100)
    evaluate_missing(str(run.path), None, "cpu", ProcessExecutor(2))
    assert set(results(run)) == {"step_00000020/short"}
    out = capsys.readouterr().out
    assert "evaluation step_00000010/short failed" in out
    assert "is damaged" in out


class FullExecutor:
    """Jobs that never end, one at a time."""

    def __init__(self):
        self.started = []

    def has_room(self, job):
        return not self.started

    def start(self, job):
        self.started.append(job)

    def collect_ended(self):
        return []


def test_a_full_queue_holds_nothing_up_and_a_removed_checkpoint_leaves_it(run):
    executor = FullExecutor()
    config = run.load_config()
    scheduler = Scheduler(lambda: missing_jobs(run, config), executor)
    assert [scheduler.poll() for _ in range(3)] == [2, 2, 2]
    assert len(executor.started) == 1
    shutil.rmtree(run.checkpoints / "step_00000020")
    assert scheduler.poll() == 1


def test_every_so_many_tokens(run, smoke):
    for step in range(1, 31):
        folder = run.checkpoints / f"step_{step:08d}"
        write_json(folder / "complete.json", {"step": step, "tokens": step * 512})
    config = smoke("run.checkpoint_every=1", "evaluation.every_tokens=3584", "evaluation.suites=[language]")
    assert [job.step for job in due_jobs(run, config)] == [7, 14, 21, 28, 30]
    config = smoke("run.checkpoint_every=4", "evaluation.every=2", "evaluation.suites=[language]")
    assert [job.step for job in due_jobs(run, config)] == [8, 16, 24, 30]
    # None of them is a multiple of what `checkpoint_every` is now: the first after each multiple.
    for step in range(1, 31):
        if step % 3:
            shutil.rmtree(run.checkpoints / f"step_{step:08d}")
    assert [job.step for job in due_jobs(run, config)] == [9, 18, 24, 30]
    with EventLog(run.events_file) as log:
        log.write("stop", step=21)
    assert [job.step for job in due_jobs(run, config)] == [9, 18, 21, 24, 30]


class Head:
    """A Ray head of its own, as another machine would run it."""

    def __init__(self):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head"]
        command += [f"--port={self.port}", "--num-cpus=2"]
        command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--object-store-memory=100000000"]
        command += ["--disable-usage-stats", "--block"]
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

        def is_reachable() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_for(is_reachable)

    def kill(self) -> None:
        """Everything of this head at once, as when its machine dies."""
        import psutil

        processes = [psutil.Process(self.process.pid)]
        processes += processes[0].children(recursive=True)
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


def test_a_scheduled_suite_survives_its_worker_ray_and_mlflow(run, suites, monkeypatch):
    """On a real head: the worker is killed, then the head with all it has, then it comes back; MLflow is away meanwhile."""
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 2)  # or it tries for 100 seconds
    database = run.path.parent.parent / "store" / "mlflow.db"
    database.mkdir(parents=True)  # sqlite cannot open a folder: MLflow is down
    head = Head()
    head.start()
    watcher = Watcher(
        str(run.path), suites=[str(suites["long"])], address=head.address, tracking_uri=f"sqlite:///{database}"
    )
    rounds: list[bool] = []

    def rounds_until_done() -> None:
        while len(results(run)) < 2 and len(rounds) < 20:
            rounds.append(watcher.round())

    thread = threading.Thread(target=rounds_until_done, daemon=True)
    try:
        thread.start()
        first = wait_for(lambda: holder_of_some_lease(run))
        os.kill(first["pid"], signal.SIGKILL)
        wait_for(lambda: (lease_holder := holder_of_some_lease(run)) and lease_holder["pid"] != first["pid"])
        assert not results(run), "the suite must still be running when the head dies"
        head.kill()
        head.start()
        thread.join(timeout=600)
        assert not thread.is_alive()
    finally:
        head.kill()
    assert set(results(run)) == {"step_00000010/long", "step_00000020/long"}
    rows = [json.loads(path.read_text())["rows"] for path in sorted(run.evals.glob("*/long.json"))]
    assert rows[0] == rows[1]
    assert not any(rounds), "the round with the head's death was cut short, and MLflow lacked the results of the last"
    before = results(run)
    database.rmdir()
    watcher.address = None
    wait_for(watcher.round)  # MLflow is back: the files catch up, once its client's last pause is over
    assert results(run) == before
    assert [step for step, _ in metric_history(watcher.uri, "eval/long/recall/niah-4/length-128")] == [10, 20]
