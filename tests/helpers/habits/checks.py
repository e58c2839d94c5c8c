"""What must hold after every action, and at the end of a sequence."""

import json
import math
from collections import Counter

from echo_lm.evals.layout import result_files
from echo_lm.orchestration.evaluation.jobs import due_jobs, missing_jobs
from echo_lm.orchestration.tracking.evaluations import EVALUATION_TAG
from echo_lm.pipeline.run.events import read_events, steps, stopped_at
from echo_lm.pipeline.run.identity import run_id

from .world import Run, World

ACROSS_TOPOLOGIES = 2e-6  # relative, fp32
# Losses of undisturbed runs, by (workers, ZeRO stage), and by how they were extended ("", "before" or "end"); those of the first
# topology are there at least.
References = dict[tuple[int, int], dict[str, list[float]]]


def check(world: World, references: References) -> None:
    """Losses, checkpoints and ids of all runs."""
    for run in world.runs:
        if run.folder.exists():
            check_losses(run, references)
            check_checkpoints(run)
    ids = Counter(run_id(run.path) for run in world.runs if run.folder.exists())
    assert not ids or max(ids.values()) == 1, f"two folders have one id: {ids}"


def topologies_of(run: Run) -> set[tuple[int, int]]:
    """(workers, ZeRO stage) of all that trained the run, those of its parent included."""
    trained, topology = set(run.earlier), None
    for event in read_events(run.folder.events_file):
        if event["kind"] == "start":
            topology = (event["world_size"], event["zero_stage"])
        elif event["kind"] == "step":
            trained.add(topology)
    return trained


def check_losses(run: Run, references: References) -> None:
    """Those of an undisturbed run with the same segments: bit for bit if one topology trained them, else as far as fp32 goes."""
    losses = [(event["step"], event["loss"]) for event in steps(read_events(run.folder.events_file))]
    first = run.begin + 1
    assert [step for step, _ in losses] == list(range(first, first + len(losses))), f"steps are missing: {losses}"
    trained = topologies_of(run)
    (topology,) = trained if len(trained) == 1 else (None,)
    exact = topology in references
    expected = (references[topology] if exact else next(iter(references.values())))[run.extended]
    for step, loss in losses:
        same = (
            loss == expected[step - 1] if exact else math.isclose(loss, expected[step - 1], rel_tol=ACROSS_TOPOLOGIES)
        )
        assert same, (
            f"step {step} on {trained}, extended {run.extended!r}: {loss!r}, undisturbed {expected[step - 1]!r}"
        )


def check_checkpoints(run: Run) -> None:
    """No checkpoint was lost, and each of them is evaluated, named as missing, or not due."""
    newest = run.newest_step()
    assert newest >= run.saved, f"the newest checkpoint was {run.saved}, now it is {newest}"
    run.saved = newest
    if newest and newest == stopped_at(run.folder.events_file):
        due = {job.step for job in due_jobs(run.folder, run.folder.load_config())}
        assert newest in due or not run.folder.load_config().evaluation.suites, "the last checkpoint is not evaluated"
    for path in result_files(run.path):
        assert json.loads(path.read_text())["step"] == int(path.parent.name.removeprefix("step_"))


def check_complete(world: World, run: Run) -> None:
    """A run that came to its end through `echo-lm run`: every checkpoint that was due is evaluated."""
    assert run.finished
    if world.command == "run":
        missing = missing_jobs(run.folder, run.folder.load_config())
        assert not missing, f"not evaluated: {[job.name for job in missing]}"


def check_record(world: World, run: Run) -> None:
    """MLflow holds what the files hold, once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=world.record)
    experiment = client.get_experiment_by_name("echo-lm")
    assert experiment is not None
    assert experiment.lifecycle_stage == "active"
    identity = run_id(run.path)
    found = client.search_runs([experiment.experiment_id], f"tags.`echo_lm.run_id` = '{identity}'")
    (recorded,) = [each for each in found if EVALUATION_TAG not in each.data.tags]
    assert recorded.info.status == "FINISHED"
    history = [(entry.step, entry.value) for entry in client.get_metric_history(recorded.info.run_id, "train/loss")]
    files = [(event["step"], event["loss"]) for event in steps(read_events(run.folder.events_file))]
    assert [step for step, _ in sorted(history)] == [step for step, _ in files], "MLflow has other steps than the files"
    for (_, value), (step, loss) in zip(sorted(history), files, strict=True):
        assert math.isclose(value, loss, rel_tol=ACROSS_TOPOLOGIES), f"MLflow has {value} at step {step}, not {loss}"
    for path in result_files(run.path):
        result = json.loads(path.read_text())
        for name, value in result["metrics"].items():
            key = f"eval/{path.stem}/{name}"
            entries = client.get_metric_history(recorded.info.run_id, key)
            last = max((entry for entry in entries if entry.step == result["step"]), key=lambda entry: entry.timestamp)
            assert math.isclose(last.value, value, rel_tol=1e-9), f"MLflow has {last.value} as {key}, the file {value}"
