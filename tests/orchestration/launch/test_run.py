"""The whole pipeline on real Ray, DeepSpeed and MLflow: killed processes, evaluations beside training, nothing twice.

Two kills here; `make soak` has twenty, of nodes and heads too.
"""

import contextlib
import json
import os
import signal
import threading
import time

import pytest

from echo_lm.models.common.run_layout import checkpoint_name
from echo_lm.orchestration.launch.run import run_pipeline
from echo_lm.orchestration.tracking.mlflow import Tracker
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.trainings import train_all

# Two runs of the pipeline with their restarts: five minutes on two free cores.
pytestmark = pytest.mark.timeout(1800)

EVERY, KILL_AT, KILL_DRIVER_AT, STEPS = 30, 36, 62, 90
OVERRIDES = [f"train.steps={STEPS}", "train.batch_tokens=1024", f"run.checkpoint_every={EVERY}"]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, kill_rank_0):
    """`echo-lm run smoke` with one training process killed between the first and the second checkpoint, then the driver.

    The driver takes its Ray cluster with it.
    """
    root = tmp_path_factory.mktemp("pipeline")
    config = load_config("smoke", OVERRIDES)
    run = RunFolder(root / "runs" / "smoke")
    kill_rank_0(run, KILL_AT, after=EVERY)
    threading.Thread(target=kill_driver, args=(run, KILL_DRIVER_AT), daemon=True).start()
    run_pipeline(config, run, root / "data")
    return root, run, config


def kill_driver(run: RunFolder, step: int) -> None:
    """Kill the driver; rank 0 is stopped for a second, or it might come to its end before the driver's death reaches it."""
    while True:
        events = read_events(run.events_file)
        written = (run.checkpoints / checkpoint_name(2 * EVERY)).is_dir()  # beside the steps that follow it
        if written and any(event["kind"] == "step" and event["step"] >= step for event in events):
            rank_0, driver = ([e["pid"] for e in events if e["kind"] == kind][-1] for kind in ("start", "attempt"))
            os.kill(rank_0, signal.SIGSTOP)
            os.kill(driver, signal.SIGKILL)
            time.sleep(1)
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank_0, signal.SIGCONT)
            return
        time.sleep(0.02)


def test_workers_and_driver_are_restarted_and_end_with_the_undisturbed_loss(disturbed, tmp_path):
    root, run, _ = disturbed
    events = read_events(run.events_file)
    starts = [event["step"] for event in events if event["kind"] == "start"]
    assert starts == [0, EVERY, 2 * EVERY], "the kills must have come between two checkpoints"
    assert [event["what"] for event in events if event["kind"] == "lost"] == ["worker", "driver"]
    config = load_config("smoke", OVERRIDES)
    reference = RunFolder(tmp_path / "alone")
    reference.prepare(config, root / "data" / config.data.name)
    train_all([reference.path], world=config.run.workers)
    curves = [[event["loss"] for event in steps(read_events(r.events_file))] for r in (run, reference)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_every_checkpoint_was_evaluated_and_the_first_while_training_went_on(disturbed):
    _, run, _ = disturbed
    results = [json.loads(file.read_text()) for file in sorted(run.evals.glob("step_*/language.json"))]
    assert [result["step"] for result in results] == [EVERY, 2 * EVERY, STEPS]
    # Steps after its start, not during it: its few seconds may fall into a restart of the worker group.
    last = steps(read_events(run.events_file))[-1]["time"]
    assert results[0]["started"] < last, "an evaluation that waits for the end of training is not beside it"


def test_mlflow_mirrors_the_files(disturbed):
    from mlflow.tracking import MlflowClient

    _, run, _ = disturbed
    tracker = Tracker(run.path)
    client = MlflowClient(tracker.uri)
    tracked_runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    runs = [run for run in tracked_runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(runs) == 1
    assert sorted(run.info.run_name for run in tracked_runs) == [
        "smoke",
        *(f"step_{step:08d}/language" for step in (EVERY, 2 * EVERY, STEPS)),
    ]
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    expected = {event["step"]: event["loss"] for event in steps(read_events(run.events_file))}
    assert {point.step: point.value for point in history} == pytest.approx(expected)
    assert "report.md" in {artifact.path for artifact in client.list_artifacts(runs[0].info.run_id)}


def test_report_and_figures_exist(disturbed):
    _, run, _ = disturbed
    assert "bits per byte" in (run.path / "report.md").read_text().lower()
    assert list((run.path / "figures").glob("*.png"))


def test_running_again_does_nothing_twice(disturbed, capsys):
    root, run, config = disturbed
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    run_pipeline(config, run, root / "data")
    assert "nothing to do" in capsys.readouterr().out
    unchanged = {path for path in before if path.parent.name != "figures" and path.name not in ("report.md", ".lock")}
    assert {path: path.stat().st_mtime_ns for path in unchanged} == {path: before[path] for path in unchanged}
    assert {path for path in run.path.rglob("*") if path.is_file()} == set(before)
