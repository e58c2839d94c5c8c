"""After `kill -9` of a command none of its worker processes is left, whenever it comes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers.stopping import start

LEAVE_SECONDS = 20.0  # imports of torch that had begun come to their end first: ten seconds on a busy machine

PREPARING = """
import time
from echo_lm.orchestration.preparation.executors import process_map
if __name__ == "__main__":
    list(process_map(time.sleep, [0.1, 0.1, 600.0], 2))
"""


def children(process: subprocess.Popen) -> list[psutil.Process]:
    """The worker processes, known by how `multiprocessing` starts them."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
    return found


def kill_when(process: subprocess.Popen, ready: Callable[[list[psutil.Process]], bool]) -> list[psutil.Process]:
    """Kill the command as soon as its workers are `ready`; returns those that are left some seconds later."""
    deadline = time.monotonic() + 120
    while not ready(workers := children(process)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()  # not until its output ends: a worker that is left holds the pipe
    _, left = psutil.wait_procs(workers, timeout=LEAVE_SECONDS)
    for worker in left:
        worker.kill()
    return left


@pytest.mark.parametrize("seconds", [0.0, 3.0])
def test_training_process_that_was_just_started_ends_with_its_parent(
    seconds: float, tmp_path: Path, data_root: Path
) -> None:
    arguments = ["train", "smoke", "run.workers=1", "--runs", tmp_path, "--data", data_root]
    process = start(*arguments)
    assert not kill_when(process, lambda workers: bool(workers) and old(workers[0]) >= seconds)


def old(process: psutil.Process) -> float:
    return time.time() - process.create_time()


def test_idle_and_busy_preparing_processes_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "preparing.py"
    script.write_text(PREPARING)
    process = subprocess.Popen([sys.executable, str(script)])
    assert not kill_when(process, lambda workers: len(workers) == 2 and min(map(old, workers)) > 3)
