"""Commands that are stopped by a signal while they train, for tests."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from echo_lm.evals.layout import complete_checkpoints
from echo_lm.pipeline.run.events import read_events, steps

GRACE_SECONDS = 30.0  # of Slurm
COMMAND = [sys.executable, "-c", "from echo_lm.orchestration.cli.main import main; main()"]


def start(*arguments: str | Path, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def steps_of(run: Path) -> int:
    return max((event["step"] for event in read_events(run / "events.jsonl") if event["kind"] == "step"), default=0)


def stop_at(
    process: subprocess.Popen, run: Path, step: int, number: int = signal.SIGTERM, *, everyone: bool = False
) -> tuple[float, str]:
    """Send the signal when the run has recorded `step`; returns the seconds until the end, and the output.

    Args:
        everyone: send it to every process below the command too, the deepest first, as some batch systems do.
    """
    deadline = time.monotonic() + 600
    while steps_of(run) < step:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    descendants = psutil.Process(process.pid).children(recursive=True)
    stopped = time.monotonic()
    for other in reversed(descendants) if everyone else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            other.send_signal(number)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    seconds = time.monotonic() - stopped
    _, alive = psutil.wait_procs(descendants, timeout=10)
    assert not alive, [process.cmdline() for process in alive]
    return seconds, output


def check_stopped(run: Path, reason: str) -> int:
    """The last step is in a checkpoint, and the log says why the run stopped; returns that step."""
    events = read_events(run / "events.jsonl")
    (stop,) = [event for event in events if event["kind"] == "stop"]
    checkpoints = list(complete_checkpoints(run))
    assert stop["step"] == checkpoints[-1][1]["step"] == max(event["step"] for event in steps(events))
    assert stop["reason"] == reason
    return stop["step"]
