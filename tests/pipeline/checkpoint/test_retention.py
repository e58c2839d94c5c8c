"""When checkpoints are written, and which of them stay."""

import threading

import pytest

from echo_lm.evals.layout import complete_steps
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import write_json
from echo_lm.models.common.run_layout import checkpoint_name
from echo_lm.orchestration.launch.checkpoint import checkpoint_run
from echo_lm.pipeline.checkpoint.format import apply_retention, best_step
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.run.events import read_events, stopped_at
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.stop_request import TimeLimit
from tests.helpers import warm
from tests.helpers.trainings import train_all

METRIC = "language/bits_per_byte"


def write_checkpoint(run: RunFolder, step: int) -> None:
    folder = run.checkpoints / checkpoint_name(step)
    for part in ("model", "engine"):
        (folder / part).mkdir(parents=True)
    write_json(folder / "complete.json", {"step": step, "tokens": step})


def left(run: RunFolder) -> dict[int, bool]:
    """The steps of the checkpoints that are left, and whether each is resumable."""
    return {step: (run.checkpoints / checkpoint_name(step) / "engine").is_dir() for step, _ in complete_steps(run.path)}


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path)
    for step in range(1, 9):
        write_checkpoint(run, step)
    return run


def test_all_stay_by_default(run, smoke):
    apply_retention(run, smoke())
    assert left(run) == dict.fromkeys(range(1, 9), True)


def test_engines_then_weights_of_older_checkpoints_go(run, smoke):
    apply_retention(run, smoke("run.keep_checkpoints=2", "run.keep_models=4", "run.keep_every=3"))
    assert left(run) == {3: True, 5: False, 6: True, 7: True, 8: True}


def test_planned_checkpoints_are_written_and_stay(tmp_path, smoke, data_root):
    config = smoke(
        "train.steps=4", "run.workers=1", "run.checkpoint_steps=[1,3]", "run.keep_checkpoints=1", "run.keep_models=1"
    )
    run = RunFolder(tmp_path / "planned")
    run.prepare(config, data_root / config.data.name)
    train_all([run.path])
    assert left(run) == {1: True, 3: True, 4: True}
    with pytest.raises(UserError, match=r"run\.checkpoint_steps"):
        load_config("smoke", ["run.checkpoint_steps=[0]"])


@pytest.mark.parametrize(("higher", "best"), [(False, 2), (True, 1)])
def test_the_best_stays(run, smoke, higher, best):
    for step, value in ((1, 3.0), (2, 1.0), (3, 2.0)):
        folder = run.evals / checkpoint_name(step)
        write_json(folder / "language.json", {"suite": "language", "step": step, "metrics": {METRIC: value}})
    rule = f"run.keep_best={{metric: {METRIC}, higher: {higher}}}"
    config = smoke("run.keep_checkpoints=1", "run.keep_models=1", rule)
    assert best_step(run, config.run.keep_best) == best
    apply_retention(run, config)
    assert left(run) == {best: True, 8: True}


def test_rules_that_contradict_each_other_are_one_line():
    with pytest.raises(UserError, match="run: keep_models=2 is less than keep_checkpoints=3"):
        load_config("smoke", ["run.keep_models=2", "run.keep_checkpoints=3"])
    with pytest.raises(UserError, match="run.time_limit: 'soon' is no time: write it as 90s, 30m, 2h or 3h55m"):
        load_config("smoke", ["run.time_limit=soon"])


def test_a_checkpoint_also_after_so_many_minutes(tmp_path, smoke, data_root):
    config = smoke("train.steps=4", "run.workers=1", "run.checkpoint_minutes=1e-6", "run.keep_checkpoints=1")
    run = RunFolder(tmp_path / "often")
    run.prepare(config, data_root / config.data.name)
    train_all([run.path])
    assert left(run) == {1: False, 2: False, 3: False, 4: True}


def test_a_checkpoint_on_demand_and_a_clean_end_at_the_time_limit(tmp_path, smoke, data_root):
    config = smoke(
        "train.steps=100000", "run.checkpoint_every=100000", "run.time_limit=1s", "mixture.recall.share=0.25"
    )
    run = RunFolder(tmp_path / "long")
    run.prepare(config, data_root / config.data.name)
    training = threading.Thread(target=launch, args=(run, config))
    with warm.forking():
        training.start()
    while not any(event["kind"] == "step" for event in read_events(run.events_file)):
        assert training.is_alive()
        training.join(0.1)
    step = checkpoint_run(run, timeout=60)
    assert left(run) == {step: True}
    with TimeLimit(run, config):
        training.join(60)
    assert not training.is_alive()
    (stop,) = [event for event in read_events(run.events_file) if event["kind"] == "stop"]
    assert stop["reason"] == "run.time_limit=1s"
    assert list(left(run)) == [step, stop["step"]] == [step, stopped_at(run.events_file)]
    with pytest.raises(UserError, match=f"is not training now: its newest checkpoint is that of step {stop['step']}"):
        checkpoint_run(run, timeout=60)
