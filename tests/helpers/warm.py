"""Processes forked from one that has imported torch and DeepSpeed: their imports are most of a small training's time.

That one is started by the first of them and ends with the session of tests. What it forks is a process like any other: it has its
own state and dies alone. It does not see what a test has changed in `os.environ`.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch.distributed.launcher.api import LaunchConfig

# What a training imports before its first step is done.
PRELOADED = ["echo_lm.pipeline.loop", "echo_lm.models.mixers.mamba2", "deepspeed", "torch._dynamo"]
_STARTING = threading.Lock()  # several threads may be the first


def context() -> Any:
    """The context of `multiprocessing` that forks from there."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    with _STARTING, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def spawn(function: Callable, arguments: tuple, nprocs: int) -> None:
    """`torch.multiprocessing.spawn` from there: `function(rank, *arguments)` in each process, errors raised here."""
    context()
    mp.start_processes(function, arguments, nprocs, start_method="forkserver")


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Lets `pipeline.launch` and `ProcessExecutor` fork their processes from there where this process starts them.

    Workers of `launch` get no SIGTERM from it then: it knows its own children.
    """
    from_there = context()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("echo_lm.pipeline.launch.LaunchConfig", partial(LaunchConfig, start_method="forkserver"))
        module = "echo_lm.orchestration.jobs.executors.multiprocessing"
        patch.setattr(module, SimpleNamespace(get_context=lambda method: from_there))
        yield


def run_code(code: str, *arguments: str | Path, log: Path, timeout: float = 200) -> int:
    """`python -c code arguments`; returns the exit code, -9 after `kill -9`. The output goes to the file `log`."""
    process = context().Process(target=_run_code, args=(code, ["-c", *map(str, arguments)], log))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"longer than {timeout} s, see {log}")
    return process.exitcode


def _run_code(code: str, arguments: list[str], log: Path) -> None:
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = arguments
    torch.set_num_threads(1)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def stop() -> None:
    """End the process that is forked from, so that its processor time is counted with that of the tests."""
    forkserver._forkserver._stop()
