"""Killed, stopped, out of disk space, out of range: nothing is lost but what was trained since the last checkpoint."""

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from echo_lm.evals.layout import complete_checkpoints
from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.checkpoint.format import check_checkpoint, latest_checkpoint
from echo_lm.pipeline.config import RunConfig
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers import warm

EVERY = 10  # recipe `smoke` writes a checkpoint every so many steps
# Larger than the default, so that rounding is not multiplied from step to step where topologies are compared.
STEADY = ("model.ska.ridge=0.1", "train.learning_rate=1e-3")


def set_up(config: RunConfig, folder: Path, data_root: Path) -> RunFolder:
    run = RunFolder(folder)
    run.prepare(config, data_root / config.data.name)
    return run


def losses(run: RunFolder) -> torch.Tensor:
    return torch.tensor([event["loss"] for event in steps(read_events(run.events_file))], dtype=torch.float64)


def of_kind(run: RunFolder, kind: str) -> list[dict]:
    return [event for event in read_events(run.events_file) if event["kind"] == kind]


def alone(run: RunFolder, code: str = "") -> int:
    """Train `run` in a process that first runs the Python code `code`; returns its exit code."""
    code = f"import sys\nif True:\n    pass\n{code}\nfrom echo_lm.pipeline.loop import train\ntrain(sys.argv[1])"
    return warm.run_code(code, run.path, log=run.path.with_name("alone.log"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_root, smoke):
    """A run of one process to its end: its losses by step."""
    run = set_up(smoke(*STEADY, "run.workers=1"), tmp_path_factory.mktemp("undisturbed") / "run", data_root)
    assert alone(run) == 0
    return losses(run)


def test_one_run_in_three_topologies_lies_on_the_undisturbed_curve(
    undisturbed, tmp_path, data_root, smoke, kill_rank_0
):
    """dp2 with ZeRO 2, killed; sp2 with ZeRO 3, killed; one rank with ZeRO 1."""
    topologies = [
        ("run.workers=2", "run.zero_stage=2"),
        ("run.workers=2", "run.zero_stage=3", "run.sequence_parallel=2"),
        ("run.workers=1", "run.zero_stage=1"),
    ]
    for topology, killed_after in zip(topologies, (12, 22, None), strict=True):
        config = smoke(*STEADY, *topology, "run.max_restarts=0", "run.checkpoint_beside_training=false")
        run = set_up(config, tmp_path / "run", data_root)
        if killed_after is None:
            assert alone(run) == 0
        else:
            kill_rank_0(run, killed_after)
            with warm.forking(), pytest.raises(UserError, match="the last complete checkpoint is kept"):
                launch(run, config)
    starts = of_kind(run, "start")
    assert [(start["step"], start["world_size"], start["zero_stage"]) for start in starts] == [
        (0, 2, 2),
        (10, 2, 3),
        (20, 1, 1),
    ]
    torch.testing.assert_close(losses(run), undisturbed, rtol=1e-4, atol=0)


def kill_when_writing(run: RunFolder, step: int, delay: float) -> None:
    """`kill -9` all workers a moment after the checkpoint of `step` has begun; in a thread."""

    def watch() -> None:
        partial = run.checkpoints / f".step_{step:08d}.partial"
        while not partial.exists():
            time.sleep(0.001)
        time.sleep(delay)
        kill_workers()

    threading.Thread(target=watch, daemon=True).start()


def workers() -> list[psutil.Process]:
    """The training processes that `launch` started."""
    processes = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("spawn_main" in word for word in child.cmdline()):
                processes.append(child)
    return processes


def kill_workers() -> None:
    for worker in workers():
        with contextlib.suppress(psutil.Error):
            worker.kill()


def has_pending_sigterm(worker: psutil.Process) -> bool:
    """Whether a SIGTERM waits for a process that is stopped."""
    pending = re.search(r"ShdPnd:\s*(\w+)", Path(f"/proc/{worker.pid}/status").read_text())[1]
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def wait_for(condition: Callable[[], bool]) -> None:
    """At most a minute; what does not happen shows in what the test looks at."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def check_after_crash(run: RunFolder, expected: torch.Tensor, in_background: bool) -> None:
    """No checkpoint is damaged, no batch was skipped or doubled, no more was repeated than the rule allows."""
    assert torch.equal(losses(run), expected)
    assert (run.checkpoints / "latest").read_text().strip() == latest_checkpoint(run).name
    for checkpoint, _ in complete_checkpoints(run.path):
        check_checkpoint(checkpoint)
    assert not list(run.checkpoints.glob(".*.partial"))
    reached = last_begun = 0
    for event in read_events(run.events_file):
        if event["kind"] == "step":
            assert event["step"] == reached + 1, "steps follow each other"
            reached = event["step"]
            last_begun = max(last_begun, reached // EVERY * EVERY)
        elif event["kind"] == "start":
            # A checkpoint that is written in the background may have been incomplete at the kill: then the one before it counts.
            oldest = reached - EVERY if not in_background else last_begun - EVERY
            assert oldest <= event["step"] <= reached
            reached = event["step"]


DIES_WHILE_WRITING = """
    import os, signal
    import echo_lm.pipeline.checkpoint.writer as writer
    save = writer.save_file
    def save_and_die(pieces, path):
        save(pieces, path)
        if ".step_00000020." in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
    writer.save_file = save_and_die
"""


@pytest.mark.parametrize("in_background", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_kill_while_a_checkpoint_is_written(in_background, undisturbed, tmp_path, data_root, smoke):
    """The process kills itself, since another one could miss the moment."""
    config = smoke(*STEADY, "run.workers=1", f"run.checkpoint_beside_training={str(in_background).lower()}")
    run = set_up(config, tmp_path / "run", data_root)
    assert alone(run, DIES_WHILE_WRITING) == -signal.SIGKILL
    assert (run.checkpoints / ".step_00000020.partial").is_dir()
    with warm.forking():
        launch(run, config)
    assert len(of_kind(run, "start")) == 2
    check_after_crash(run, undisturbed, in_background)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(30))
def test_a_kill_at_a_random_moment(trial, undisturbed, tmp_path, data_root, smoke):
    """The long form: half of the trials while a checkpoint is written, half at any time after the first step."""
    generator = random.Random(trial)
    in_background = trial % 2 == 0
    config = smoke(*STEADY, "run.workers=1", f"run.checkpoint_beside_training={str(in_background).lower()}")
    run = set_up(config, tmp_path / "run", data_root)
    if trial % 4 < 2:
        kill_when_writing(run, generator.choice([10, 20, 30]), generator.uniform(0, 0.05))
    else:

        def watch() -> None:
            while not steps(read_events(run.events_file)):
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 1.5))
            kill_workers()

        threading.Thread(target=watch, daemon=True).start()
    launch(run, config)
    check_after_crash(run, undisturbed, in_background)


FULL_DISK = """
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # The first file of the second checkpoint stops in its middle, as on a disk that is full.
    import echo_lm.pipeline.checkpoint.writer as writer
    begin = writer.CheckpointWriter.begin
    def limited(self, step, tokens):
        if step == 20:
            self.finish()
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        begin(self, step, tokens)
    writer.CheckpointWriter.begin = limited
"""


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(undisturbed, tmp_path, data_root, smoke):
    run = set_up(smoke(*STEADY, "run.workers=1"), tmp_path / "run", data_root)
    assert alone(run, FULL_DISK) != 0
    with pytest.raises(UserError, match="could not be written .*the checkpoint before it is kept"):
        run.raise_recorded_error()
    assert latest_checkpoint(run).name == "step_00000010"
    check_checkpoint(latest_checkpoint(run))
    assert alone(run) == 0
    check_after_crash(run, undisturbed, in_background=True)


def test_sigterm_saves_and_leaves(undisturbed, tmp_path, data_root, smoke):
    """To the process that starts the worker group; the workers finish their step and write a checkpoint of it."""
    config = smoke(*STEADY, "run.workers=2")
    run = set_up(config, tmp_path / "run", data_root)

    def watch() -> None:
        while len(of_kind(run, "step")) < 3:
            time.sleep(0.01)
        # They are stopped until both are told: a signal that is passed on late might find them at the end.
        stopped = workers()
        for worker in stopped:
            worker.suspend()
        wait_for(lambda: all(worker.status() == psutil.STATUS_STOPPED for worker in stopped))
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: all(map(has_pending_sigterm, stopped)))
        for worker in stopped:
            worker.resume()

    threading.Thread(target=watch, daemon=True).start()
    launch(run, config)
    assert not run.finished()
    reached = of_kind(run, "step")[-1]["step"]
    assert of_kind(run, "stop")[0]["step"] == reached < 30
    assert latest_checkpoint(run).name == f"step_{reached:08d}"
    # `echo-lm train RUN` goes on by itself; other seeds of the global generators change nothing.
    assert alone(run, "    import torch, random; torch.manual_seed(7); random.seed(7)\n") == 0
    assert of_kind(run, "start")[-1]["step"] == reached
    torch.testing.assert_close(losses(run), undisturbed, rtol=1e-4, atol=0)


NOT_FINITE = """
    import echo_lm.pipeline.update as update
    real, calls = update._losses, []
    def broken(engine, *arguments):
        nats, objective, gate_mean = real(engine, *arguments)
        calls.append(0)
        return nats, objective * (float("nan") if len(calls) in {bad} else 1.0), gate_mean
    update._losses = broken
"""


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_gradient_that_is_not_finite_is_skipped_and_a_row_of_them_goes_back(
    stage, undisturbed, tmp_path, data_root, smoke
):
    config = smoke(*STEADY, "run.workers=1", f"run.zero_stage={stage}", "run.rollback_after=3")
    run = set_up(config, tmp_path / "run", data_root)
    assert alone(run, NOT_FINITE.format(bad=(13, 14, 15))) == 0
    assert [event["step"] for event in of_kind(run, "skip")] == [13, 14, 15]
    (back,) = of_kind(run, "rollback")
    assert (back["from_step"], back["step"]) == (15, 10)
    torch.testing.assert_close(losses(run), undisturbed, rtol=1e-4, atol=0)


def test_gradients_that_stay_not_finite_end_the_run_in_one_line(tmp_path, data_root, smoke):
    config = smoke(*STEADY, "run.workers=1", "run.rollback_after=2")
    run = set_up(config, tmp_path / "run", data_root)
    assert alone(run, NOT_FINITE.format(bad="range(12, 99)")) != 0
    with pytest.raises(
        UserError, match="not finite at steps 11 to 12 again, after going back: lower train.learning_rate"
    ):
        run.raise_recorded_error()
    assert [event["step"] for event in of_kind(run, "skip")] == [12, 13, 11, 12]


def test_a_worker_that_is_interrupted_while_it_exits_says_nothing(tmp_path):
    """Torch interrupts the workers of a command that was killed; those that had ended their work wrote a traceback beneath its
    output."""
    code = """
import os, signal
from echo_lm.pipeline import loop
from echo_lm.pipeline.worker import work
loop.train = lambda folder, compilation: None
work("nowhere")
os.kill(os.getpid(), signal.SIGINT)
"""
    assert warm.run_code(code, log=tmp_path / "log") == 0
    assert (tmp_path / "log").read_text() == ""
