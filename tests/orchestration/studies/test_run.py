"""Studies really run: with Ray, as processes, killed and run again; nothing twice, nothing lost; the record in MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.jobs import scheduler as scheduler_module
from echo_lm.orchestration.jobs.executors import Ended
from echo_lm.orchestration.studies import run as study_module
from echo_lm.orchestration.studies.cell import result_file
from echo_lm.orchestration.studies.export import export_study, import_study
from echo_lm.orchestration.studies.folder import StudyFolder, failed_cells, find_study, remaining_cells
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.reporting import fit_and_report
from echo_lm.orchestration.studies.run import run_study
from echo_lm.orchestration.studies.tables import status_view
from echo_lm.orchestration.studies.tracking import track_study
from echo_lm.pipeline.run.events import read_events

TINY = {
    "preset_version": 2,  # as a file gets it that names none
    "families": ["transformer"],
    "sizes": {"xs": {"preset": "1m", "model": {"d_model": 32}, "feedforward_width": 64}},
    "budgets": {"tokens": [8192, 32768]},
    "batch": {"value": 512},
    "checkpoint_minutes": 0.01,
    "hardware": {"memory_gib": 4, "tflops": 0.001, "devices": 2, "startup_seconds": 1},
    "limits": {"min_steps": 4},
    "fit": {"hold_out": [], "bootstrap": 100},
}


def losses(folder: StudyFolder) -> dict[str, float]:
    return {result.cell.name: result.loss for result in folder.results(folder.load_plan())}


@pytest.fixture(scope="module")
def data(tmp_path_factory, data_root):
    """The shared dataset, where a study may look at it."""
    root = tmp_path_factory.mktemp("data")
    (root / "python-stdlib-sample").symlink_to(data_root / "python-stdlib-sample")
    return root


def test_killed_and_run_again_it_has_the_numbers_of_a_study_on_ray(study, study_file, data, tmp_path):
    """A study under Ray, undisturbed; the same one as processes, its supervisor killed after the first cell's record."""
    whole = run_study(study(**TINY), tmp_path / "ray", data, use_ray=True)
    assert len(losses(whole)) == 2

    file = study_file(**TINY)
    command = [
        sys.executable,
        "-c",
        "from echo_lm.orchestration.cli.main import main; main()",
        "study",
        "run",
        str(file),
    ]
    command += ["--studies", str(tmp_path / "killed"), "--data", str(data)]
    folder = StudyFolder(tmp_path / "killed" / "toy")
    supervisor = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    slow = folder.runs / "transformer-xs-32.768k-s0"
    deadline = time.monotonic() + 240
    while not any(event["kind"] == "checkpoint" for event in read_events(slow / "events.jsonl")):
        assert supervisor.poll() is None, supervisor.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # A cell looks for its parent once a second. It is stopped for so long, or it might come to its end before that.
    cell = next(event["pid"] for event in read_events(slow / "events.jsonl") if event["kind"] == "start")
    os.kill(cell, signal.SIGSTOP)
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    time.sleep(1)
    os.kill(cell, signal.SIGCONT)
    assert not result_file(slow).exists(), "the kill must come before the end"

    process = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-6)
    starts = [event["step"] for event in read_events(slow / "events.jsonl") if event["kind"] == "start"]
    assert len(starts) == 2
    assert starts[1] > 0, "it went on from its checkpoint"
    assert (folder.path / "report.md").is_file()

    before = {path: path.read_bytes() for path in folder.runs.rglob("*") if path.is_file() and path.name != ".lock"}
    run_study(study(**TINY), tmp_path / "killed", data)
    after = {path: path.read_bytes() for path in folder.runs.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before, "a finished study is not touched"
    assert status_view(folder)[1] == 0

    with pytest.raises(UserError, match="another learning_rate|another configuration"):
        run_study(study(**TINY, learning_rate={"value": 1e-3}), tmp_path / "killed", data)
    with pytest.raises(UserError, match="no longer plans"):
        run_study(study(**TINY | {"budgets": {"tokens": [8192]}}), tmp_path / "killed", data)
    check_record(folder)


def check_record(folder: StudyFolder) -> None:
    """One parent, a child a cell, below each its evaluation, and nothing more when it is replayed."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder.path.parent.parent / 'mlflow.db'}"
    parent = track_study(folder)
    client = MlflowClient(uri)

    def state() -> tuple[set[str], dict[str, int]]:
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        counts = {}
        for run in runs:
            for key in run.data.metrics:
                counts[f"{run.info.run_id}/{key}"] = len(client.get_metric_history(run.info.run_id, key))
        return {run.info.run_id for run in runs}, counts

    first = state()
    above = {run: client.get_run(run).data.tags.get("mlflow.parentRunId") for run in first[0]}
    cells = [run for run in above if above[run] == parent]
    assert len(cells) == 2
    assert sorted(map(str, above.values())) == sorted(map(str, [None, parent, parent, *cells]))
    names = {file.path for file in client.list_artifacts(parent)}
    assert {"plan.json", "fit.json", "report.md", "report.html", "figures"} <= names
    assert client.get_run(parent).info.status == "FINISHED"
    assert track_study(folder) == parent
    assert state() == first


class Scripted:
    """An executor whose cells end as a script says: a list of errors a cell, None for success."""

    def __init__(self, script, record):
        self._script, self._record, self._ended, self.started = script, record, [], []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def has_room(self, job):
        return True

    def start(self, job):
        self.started.append(job.cell.name)
        self.finish(job, self._script[job.cell.budget].pop(0))

    def finish(self, job, error, loss=2.0, **fields):
        if error is None:
            fields |= {"identity": job.config.identity()}
            result = self._record(job.cell, loss).model_copy(update=fields)
            result_file(job.folder).parent.mkdir(parents=True)
            result_file(job.folder).write_text(json.dumps(result.model_dump(mode="json")))
        self._ended.append(Ended(job, "here" if error is None else None, error))

    def collect_ended(self):
        ended, self._ended = self._ended, []
        return ended


@pytest.fixture
def no_pauses(monkeypatch):
    """Polls and attempts follow each other at once."""
    monkeypatch.setattr(scheduler_module, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(scheduler_module, "pause_seconds", lambda failures: 0.0)


def test_failures_are_retried_then_reported_and_the_others_done(study, record, data, tmp_path, monkeypatch, no_pauses):
    executor = Scripted({"8.192k": ["out of memory", None], "32.768k": ["killed", "killed", "out of luck"]}, record)
    monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: executor)
    with pytest.raises(UserError, match=r"1 of 2 cells failed, first transformer-xs-32\.768k-s0: out of luck"):
        run_study(study(**TINY), tmp_path, data)
    assert len(executor.started) == 5
    folder = find_study("toy", tmp_path)
    plan = folder.load_plan()
    assert failed_cells(folder, plan.cells) == {"transformer-xs-32.768k-s0": "out of luck"}
    assert list(losses(folder)) == ["transformer-xs-8.192k-s0"]
    report = fit_and_report(folder).read_text()
    assert "transformer-xs-32.768k-s0: failed: out of luck" in report
    executor = Scripted({"32.768k": [None]}, record)
    monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: executor)
    run_study(study(**TINY), tmp_path, data)
    assert executor.started == ["transformer-xs-32.768k-s0"], "only what is missing is run"
    assert failed_cells(folder, plan.cells) == {}


def test_with_little_time_the_cells_that_fit_are_run_and_the_others_left(study, record, data, tmp_path, monkeypatch):
    """Predicted are 4.2 and 13.9 s; the first is said to have taken 60, so 15, enough by prediction, are too few then."""
    still = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr(scheduler_module, "time", still)
    monkeypatch.setattr(study_module, "time", still)  # or a pause of the machine takes from the seconds that are given
    toy = study(**TINY)

    def run_for(seconds: float | None) -> list[str]:
        executor = Scripted({"8.192k": [None], "32.768k": [None]}, record)
        monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: executor)
        folder = run_study(toy, tmp_path, data, seconds=seconds)
        remaining.append([cell.name for cell in remaining_cells(folder, folder.load_plan())])
        return executor.started

    remaining: list[list[str]] = []
    short, long = "transformer-xs-8.192k-s0", "transformer-xs-32.768k-s0"
    predicted = {cell.name: cell.seconds for cell in make_plan(toy, Dataset.open(data / toy.data.name)).cells}
    assert predicted[short] < 5 < predicted[long] < 15
    assert run_for(5) == [short]
    assert run_for(15) == []
    assert run_for(None) == [long]
    assert remaining == [[long], [long], []]
    with pytest.raises(UserError, match="--for needs the processes of this machine"):
        run_study(toy, tmp_path, data, use_ray=True, seconds=5)


def test_the_command_says_what_is_left_and_what_failed(study_file, record, data, tmp_path, monkeypatch):
    """A cell is left; then it fails, and there is no time for another attempt; then it is not even begun."""
    now = [0.0]

    class Slow(Scripted):
        def start(self, job):
            now[0] += 150
            super().start(job)

    executor = Slow({"8.192k": [None], "32.768k": ["out of luck"]}, record)
    monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: executor)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr(scheduler_module, "time", clock)
    monkeypatch.setattr(study_module, "time", clock)
    monkeypatch.setenv("COLUMNS", "300")
    command = ["study", "run", str(study_file(**TINY)), "--studies", str(tmp_path), "--data", str(data), "--for"]
    long = "transformer-xs-32.768k-s0"

    def run_for(limit: str) -> str:
        result = CliRunner().invoke(app, [*command, limit])
        assert result.exception is None or isinstance(result.exception, UserError), result.exception
        return " ".join(f"{result.output} {result.exception or ''}".split())

    output = run_for("5s")
    assert "1 of 2 cells are left" in output
    assert not (tmp_path / "toy" / "report.md").exists()
    assert f"1 of 2 cells failed, first {long}: out of luck" in run_for("200s")
    assert executor.started == ["transformer-xs-8.192k-s0", long]
    assert f"1 of 2 cells failed, first {long}: out of luck" in run_for("1s")
    assert len(executor.started) == 2
    assert "--for 'soon' is no time: write it as 90s, 30m, 2h or 3h55m" in run_for("soon")


def test_a_sweep_that_was_not_finished_in_time_sets_no_rate(study, record, data, tmp_path, monkeypatch):
    sizes = {
        size: {"preset": "1m", "model": {"d_model": d}, "feedforward_width": 64} for size, d in (("a", 32), ("b", 64))
    }
    rule = {"value": 3e-3, "sweep": {"sizes": ["a", "b"], "factors": [0.5, 1, 2]}}
    executor = Scripted({}, record)
    monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: executor)
    folder = run_study(study(**TINY | {"sizes": sizes, "learning_rate": rule}), tmp_path, data, seconds=0.5)
    assert executor.started == []
    assert not folder.rule_file.exists()
    assert len(remaining_cells(folder, folder.load_plan())) == 10


def test_a_sweep_runs_first_and_sets_the_rate_of_the_others(study, record, data, tmp_path, monkeypatch, no_pauses):
    sizes = {
        size: {"preset": "1m", "model": {"d_model": d}, "feedforward_width": 64} for size, d in (("a", 32), ("b", 64))
    }
    rates = []
    broken = ["transformer-a-8.192k-lr0.5"]

    class Bowl(Scripted):
        def start(self, job):
            if job.cell.name in broken:
                self.finish(job, "out of luck")
                return
            rate = job.config.train.learning_rate
            rates.append((job.cell.kind, job.cell.size, rate))
            self.finish(job, None, 2 + (rate / {"a": 4e-3, "b": 2e-3}[job.cell.size] - 1) ** 2, learning_rate=rate)

    monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: Bowl({}, record))
    rule = {"value": 3e-3, "sweep": {"sizes": ["a", "b"], "factors": [0.5, 1, 2]}}
    swept = study(**TINY | {"sizes": sizes, "learning_rate": rule})
    with pytest.raises(UserError, match="1 of 10 cells failed, first transformer-a-"):
        run_study(swept, tmp_path, data)
    assert [kind for kind, *_ in rates] == ["sweep"] * 5 + ["main"] * 4
    main = {size: rate for kind, size, rate in rates if kind == "main"}
    assert main["a"] > 1.4 * main["b"]
    folder = find_study("toy", tmp_path)
    stored = folder.rule_file.read_bytes()
    broken.clear()
    with pytest.raises(UserError, match="1 of 10 cells failed, first transformer-a-"):
        run_study(swept, tmp_path, data)
    assert len(rates) == 9, "the cells of its rule are trained: what failed of the sweep is not tried again"
    assert folder.rule_file.read_bytes() == stored
    # In one file to another place: the same records, and nothing left to run.
    elsewhere, exported = StudyFolder(tmp_path / "elsewhere" / "toy"), export_study(folder)
    import_study(exported, elsewhere)
    assert elsewhere.load_plan() == folder.load_plan()
    with pytest.raises(UserError, match="1 of 10 cells failed"):
        run_study(swept, tmp_path / "elsewhere", data)
    plan = folder.load_plan()
    assert len(rates) == 9
    assert elsewhere.results(plan) == folder.results(plan)
    assert failed_cells(elsewhere, plan.cells) == failed_cells(folder, plan.cells) != {}
    assert elsewhere.rule_file.read_bytes() == stored
    with pytest.raises(UserError, match=r"is no study\.json of this version"):
        import_study(folder.plan_file, elsewhere)
    with pytest.raises(UserError, match="holds toy, not another"):
        import_study(exported, StudyFolder(tmp_path / "another"))
    content = json.loads(exported.read_text()) | {"failed": {"../cell": "no"}}
    exported.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"holds cell \.\./cell, which its plan has not"):
        import_study(exported, elsewhere)
