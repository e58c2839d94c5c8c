"""`echo-lm sweep`: nothing runs twice, what is shared, stopped or left is said, and bad input is refused first."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import psutil
import pytest
from typer.testing import CliRunner

from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.result_files import SweepFolder, write_run
from echo_lm.evals.sweeps.runs import runs_of
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.jobs.executors import ProcessExecutor
from echo_lm.orchestration.jobs.job import Resources, run_under_leases
from echo_lm.orchestration.jobs.scheduler import Scheduler
from echo_lm.orchestration.sweeps.group import GroupJob
from echo_lm.orchestration.sweeps.queue import SweepQueue
from tests.helpers.tiny_sweep import IN_TASK, SWEEP, sweep_file

pytestmark = pytest.mark.usefixtures("forking")

ENDLESS = SWEEP["training"] | {"steps": 10**6}


def command(*arguments, **options):
    line = [sys.executable, "-c", "from echo_lm.orchestration.cli.main import main; main()", "sweep"]
    return subprocess.Popen(
        [*line, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def sweep(*arguments) -> str:
    """Run the command in this process; returns what it printed."""
    result = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


def counted(folder) -> Counter:
    return Counter(json.loads(path.read_text())["arm"] for path in folder.glob("runs/*.json"))


@pytest.mark.parametrize("executor", [["--workers", "2"], ["--ray"]])
def test_a_sweep_runs_to_its_report_and_again_does_nothing(tmp_path, executor):
    path, sweeps = sweep_file(tmp_path, seeds=[0]), tmp_path / "sweeps"
    output = sweep("run", path, "--sweeps", sweeps, "--device", "cpu", *executor)
    assert "tiny: 4 runs to do, 0 there" in output
    assert counted(sweeps / "tiny") == {"one": 2, "two": 2}
    page = sweeps / "tiny" / "tiny.md"
    assert f"report: {page}" in output
    assert "echo-lm sweep run tiny.yaml" in page.read_text()
    before = {file: file.stat().st_mtime_ns for file in (sweeps / "tiny").glob("runs/*")}
    assert "tiny: 0 runs to do, 4 there" in sweep("run", path, "--sweeps", sweeps, "--device", "cpu")
    assert {file: file.stat().st_mtime_ns for file in (sweeps / "tiny").glob("runs/*")} == before
    status = sweep("status", path, "--sweeps", sweeps)
    assert "│ all │ 4 │ 4 │ 0 │ 0 │ 0 │ 0 │" in status


def test_what_the_time_does_not_allow_is_stopped_and_left_and_the_archive_has_the_rest(tmp_path, monkeypatch):
    """The first sweep ends in seconds, the second never would: the time is up once it is at work. Nobody is left at work."""
    quick, slow = sweep_file(tmp_path, name="quick"), sweep_file(tmp_path, name="slow", training=ENDLESS)
    sweeps, archive = tmp_path / "sweeps", tmp_path / "home.tar.xz"

    def monotonic() -> float:
        at_work = any((sweeps / "slow").glob("leases/*.lease"))
        return time.monotonic() + (600 if at_work else 0)

    clock = SimpleNamespace(monotonic=monotonic, sleep=time.sleep)
    monkeypatch.setattr("echo_lm.orchestration.jobs.scheduler.time", clock)
    options = ["--sweeps", sweeps, "--device", "cpu", "--arm", "one", "--for", "300s", "--archive", archive]
    others = set(psutil.Process().children(recursive=True))
    output = sweep("run", quick, slow, *options, "--together", 4)
    assert "slow: 4 runs are left" in output
    assert "report" not in output, "of the quick one an arm is missing"
    assert counted(sweeps / "quick") == {"one": 4}
    assert set(psutil.Process().children(recursive=True)) == others
    monkeypatch.undo()
    home = tmp_path / "home"
    with tarfile.open(archive) as file:
        file.extractall(home, filter="data")
    assert sorted(path.name for path in home.iterdir()) == ["quick.json", "slow.json"]
    assert "quick: 0 runs to do, 4 there" in sweep(
        "run", quick, "--sweeps", home, "--device", "cpu", "--arm", "one", "--for", "60s"
    )


def test_killed_at_work_it_goes_on_with_what_is_missing(tmp_path):
    path, sweeps = sweep_file(tmp_path, seeds=[0]), tmp_path / "sweeps"
    process = command("run", path, "--sweeps", sweeps, "--device", "cpu")
    deadline = time.monotonic() + 120
    while not counted(sweeps / "tiny") and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not psutil.wait_procs(children, timeout=10)[1], "workers end with their parent"
    done = counted(sweeps / "tiny").total()
    assert f"tiny: {4 - done} runs to do" in sweep("run", path, "--sweeps", sweeps, "--device", "cpu")
    assert counted(sweeps / "tiny").total() == 4


def queue_of(path, sweeps, together=1) -> SweepQueue:
    loaded = load_sweep(path)
    folder = SweepFolder(sweeps, loaded.name)
    return SweepQueue(loaded, folder, together=together, device="cpu", resources=Resources(Fraction(1)))


class Answers:
    """An executor that answers 18 of 20 queries of one pair and 17 of others, at once."""

    def __init__(self):
        self.groups, self._ended = [], []

    def has_room(self, job):
        return not self._ended

    def start(self, job):
        self.groups.append(job.runs)
        for run in job.runs:
            (cell,) = run.cells
            row = cell.described() | {"queries": 20, "correct": 18 if cell.pairs == 1 else 17}
            write_run(job.folder, {"id": run.id, "arm": run.arm, "rows": [row], "final_loss": 0.0, "tokens": 0})
        self._ended.append((job, "here", None))

    def collect_ended(self):
        ended, self._ended = self._ended, []
        return ended


def test_a_cell_that_one_rate_answers_gets_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("echo_lm.orchestration.jobs.scheduler.POLL_SECONDS", 0.0)
    each_cell = IN_TASK["each_cell"] | {"enough": 0.9}
    changes = {"learning_rates": [0.01, 0.02], "seeds": [0, 1], "each_cell": each_cell}
    path = sweep_file(tmp_path, **IN_TASK | changes | {"arms": {"one": SWEEP["arms"]["one"]}})
    queue, executor = queue_of(path, tmp_path, together=3), Answers()
    scheduler = Scheduler(lambda: queue.due(2, scheduler), executor)
    scheduler.run()
    trained = [run for group in executor.groups for run in group]
    at = Counter((run.seed, run.cells[0].pairs, run.training.learning_rate) for run in trained)
    # Two gaps each; a seed of its own is no other rate.
    assert at == {(seed, *rest): 2 for seed in (0, 1) for rest in ((1, 0.01), (2, 0.01), (2, 0.02))}
    assert queue.missing() == []


def test_groups_that_failed_or_are_held_leave_their_place(tmp_path):
    queue = queue_of(sweep_file(tmp_path, seeds=[0]), tmp_path)
    scheduler = Scheduler(lambda: [], ProcessExecutor(1))
    first = queue.due(1, scheduler)
    assert [len(group.runs) for group in first] == [1]
    assert queue.due(1, scheduler) == first, "it is not at work yet"
    scheduler._failed[first[0].leases[0]] = first[0]
    (second,) = queue.due(1, scheduler)
    assert second.runs != first[0].runs
    from echo_lm.orchestration.jobs.leases import claim

    with claim(second.leases[0]):
        held, third = queue.due(1, scheduler)
        assert held is second
        assert third.runs not in (first[0].runs, second.runs)
        assert not run_under_leases(second)


def test_a_run_that_another_process_did_meanwhile_is_not_done_again(tmp_path, monkeypatch):
    queue = queue_of(sweep_file(tmp_path, seeds=[0]), tmp_path, together=2)
    (group,) = queue.due(1, Scheduler(lambda: [], ProcessExecutor(1)))
    write_run(queue.folder, {"id": group.runs[0].id})
    trained = []
    monkeypatch.setattr(
        "echo_lm.evals.sweeps.measure.measure_together",
        lambda sweep, runs, **options: [trained.append(run) or {"id": run.id} for run in runs],
    )
    assert isinstance(group, GroupJob)
    assert run_under_leases(group)
    assert trained == list(group.runs[1:])


def test_the_plan_of_a_packaged_sweep_counts_its_runs():
    output = sweep("plan", "transfer")
    runs = runs_of(load_sweep("transfer"))
    assert f"│ all │ │ │ {len(runs)} │" in output
    assert "seeds 0, 1, 2" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.yaml"], "sweep absent.yaml does not exist"),
        (["run", "{sweep}", "--arm", "three"], "sweep tiny has no arm 'three': valid names: one, two"),
        (["run", "{sweep}", "{other}", "--arm", "three"], "none of the sweeps has an arm 'three'"),
        (["run", "{sweep}", "{sweep}"], "sweep tiny is named twice"),
        (["run", "{unknown}"], "unknown model 'paper-1m-mamba3'; did you mean"),
        (["run", "{sweep}", "--for", "soon"], "--for 'soon' is no time"),
        (["run", "{sweep}", "--archive", "home.zip"], "--archive home.zip: name a file that ends in .tar.xz"),
        (["run", "{sweep}", "--device", "cuda"], "this machine has no GPU that torch can use"),
        (["run", "{sweep}", "--device", "tpu"], "--device tpu"),
        (["report", "{sweep}"], "holds no run of sweep tiny: run `echo-lm sweep run tiny.yaml` first"),
        (["plan", "transfre"], "sweep transfre does not exist"),
        (["status", "transfre"], "sweep transfre does not exist"),
    ],
)
def test_bad_input_gives_one_line_before_anything_runs(tmp_path, arguments, message):
    names = {
        "sweep": sweep_file(tmp_path),
        "other": sweep_file(tmp_path, name="other"),
        "unknown": sweep_file(tmp_path, name="unknown", arms={"one": {"preset": "paper-1m-mamba3"}}),
    }
    sweeps = tmp_path / "sweeps"
    with pytest.raises(UserError) as error:
        sweep(
            *(argument.format(**names) for argument in arguments),
            *([] if "plan" in arguments else ["--sweeps", sweeps]),
        )
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not sweeps.exists()
