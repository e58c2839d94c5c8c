"""A study within its GPU-hours: it measures first, chooses anew, stops when they are used up, and goes on with more of them."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.jobs import scheduler as scheduler_module
from echo_lm.orchestration.jobs.executors import Ended
from echo_lm.orchestration.studies import run as study_module
from echo_lm.orchestration.studies.cell import CellJob, result_file
from echo_lm.orchestration.studies.config import StudyConfig
from echo_lm.orchestration.studies.folder import StudyFolder
from echo_lm.orchestration.studies.run import run_study
from echo_lm.orchestration.studies.spending import running
from echo_lm.orchestration.studies.spending.spent import Spending, choice_of, spent_hours
from echo_lm.orchestration.studies.tables import status_view
from echo_lm.pipeline.run.events import EventLog
from echo_lm.pipeline.run.folder import RunFolder

# Predicted: 0.010, 0.020 and 0.040 h; the cells take three times as long.
STEPS, SLOWER = (16, 32, 64), 3


@pytest.fixture
def limited(study):
    """A function `limited(hours, **changes)` that makes a study of three cells with `limits.gpu_hours` = `hours`."""

    def make(hours, **changes) -> StudyConfig:
        small = {
            "preset_version": 2,
            "families": ["transformer"],
            "sizes": {"xs": {"preset": "1m", "model": {"d_model": 32}, "feedforward_width": 64}},
            "budgets": {"tokens": [512 * steps for steps in STEPS]},
            "batch": {"value": 512},
            "hardware": {"memory_gib": 4, "tflops": 1e-4, "startup_seconds": 1e-6},
            "limits": {"min_steps": 4, "gpu_hours": hours},
            "fit": {"hold_out": [], "bootstrap": 100},
        }
        made = study(**small | changes)
        first = study_module.make_plan(made).cells[0]
        hardware = made.hardware.model_copy(update={"tflops": first.flops / 36 / 1e12})
        return made.model_copy(update={"hardware": hardware})

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory, data_root):
    """The shared dataset, where a study may look at it."""
    root = tmp_path_factory.mktemp("data")
    (root / "python-stdlib-sample").symlink_to(data_root / "python-stdlib-sample")
    return root


class Slow:
    """An executor whose cells end at once and are said to have taken three times as long as was predicted."""

    def __init__(self, record):
        self._record, self._ended, self.started = record, [], []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def has_room(self, job):
        return True

    def start(self, job):
        seconds = SLOWER * job.cell.seconds
        fields = {"identity": job.config.identity(), "seconds": seconds, "tokens_per_second": job.cell.tokens / seconds}
        result = self._record(job.cell, 2.0).model_copy(update=fields)
        result_file(job.folder).parent.mkdir(parents=True)
        result_file(job.folder).write_text(json.dumps(result.model_dump(mode="json")))
        self.started.append(job.cell.budget)
        self._ended.append(Ended(job, "here"))

    def collect_ended(self):
        ended, self._ended = self._ended, []
        return ended


def test_it_goes_as_far_as_the_measured_speed_allows_and_on_with_more(limited, record, data, tmp_path, monkeypatch):
    """0.095 h have room for all three by the prediction, 0.07; the first takes 0.03, so that the last, 0.12, is left out."""
    monkeypatch.setattr(scheduler_module, "POLL_SECONDS", 0.0)
    executor = Slow(record)
    monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: executor)
    folder = run_study(limited(0.095), tmp_path, data)
    assert executor.started == ["8.192k", "16.384k"], "the cheapest first: it measures"
    plan = folder.load_plan()
    choice = choice_of(folder, plan)
    assert choice.left_out == ("transformer-xs-32.768k-s0",)
    assert spent_hours(folder, plan) == pytest.approx(0.09, rel=0.01)
    assert choice.all_hours == pytest.approx(0.12, rel=0.01)
    recorded = Spending.model_validate_json(folder.spending_file.read_text()).choices
    assert [len(one.left_out) for one in recorded] == [0, 1], "what was chosen before and after the first was measured"
    view, left = status_view(folder)
    assert left == 0
    assert list(view.renderables[0].columns[1].cells) == ["done", "done", "left out"]
    assert "limits.gpu_hours=0.095: 0.09 h of device time spent" in view.renderables[1]

    folder = run_study(limited(0.3), tmp_path, data)
    assert executor.started[2:] == ["32.768k"], "with a larger limit it goes on, and trains nothing twice"
    assert choice_of(folder, folder.load_plan()).left_out == ()
    assert len(Spending.model_validate_json(folder.spending_file.read_text()).choices) == 3


def test_the_command_reports_what_was_trained_and_names_what_was_left_out(
    limited, study_file, record, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(scheduler_module, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: Slow(record))
    monkeypatch.setenv("COLUMNS", "400")
    file = study_file(**limited(0.095).model_dump(mode="json"))
    result = CliRunner().invoke(app, ["study", "run", str(file), "--studies", str(tmp_path), "--data", str(data)])
    assert result.exception is None, result.exception
    assert "1 cells no longer fit and are left out: transformer-xs-32.768k-s0" in " ".join(result.output.split())
    report = (tmp_path / "toy" / "report.md").read_text()
    assert "- transformer-xs-32.768k-s0: left out, limits.gpu_hours=0.095 have no room for it" in report


def test_hours_of_cells_that_are_not_finished_count_and_stop_the_study(limited, data, tmp_path, monkeypatch):
    """A cell that is far slower than predicted: when the hours are used up it is stopped, where its last checkpoint is."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None, time=lambda: now[0])
    monkeypatch.setattr(scheduler_module, "time", clock)
    monkeypatch.setattr(running, "time", clock)
    left = []

    class Endless(Slow):
        def start(self, job: CellJob):
            self.started.append(job.cell.budget)
            run = RunFolder(job.folder)
            run.prepare(job.config, job.dataset.resolve())
            with EventLog(run.events_file) as log:
                log.write("start", time=0.0, step=0)
                log.write("step", time=360.0, step=1)

        def collect_ended(self):
            now[0] += 30
            return []

        def __exit__(self, *exception):
            left.append(now[0])

    executor = Endless(None)
    monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: executor)
    folder = run_study(limited(0.09), tmp_path, data)
    assert executor.started == ["8.192k"]
    assert len(left) == 1
    assert spent_hours(folder, folder.load_plan()) == pytest.approx(0.1, rel=0.01), "360 s between its events"
    assert len(choice_of(folder, folder.load_plan()).left_out) == 3
    assert StudyFolder(tmp_path / "toy").spending_file.is_file()
