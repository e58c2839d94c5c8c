"""Shared by all tests: one small dataset, made once, and a small run configuration."""

import os

os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # or hundreds of processes compile the same modules
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # tests/orchestration/launch/test_security.py has it on
os.environ.setdefault("RAY_worker_niceness", "0")  # or other tests' processes starve those of Ray

import gc
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.models.common.run_layout import checkpoint_name
from echo_lm.pipeline.config import RunConfig, load_config
from echo_lm.pipeline.run.events import read_events
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers import interpreter, warm

torch.set_num_threads(1)
sys.dont_write_bytecode = False
gc.disable()  # until all tests are collected: what is imported for them stays, and to look through it takes seconds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait for processes and files that compute in turn, so that both cores have work; the shortest at the end, so that
    none is left alone there."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    place = {}
    for folders in (("orchestration",), ("pipeline", "models", "kernels")):
        long = [path for path in files if path.relative_to(Path(__file__).parent).parts[0] in folders]
        place |= {path: number for number, path in enumerate(long)}
    shortest = ("data_prep", "evals")

    def order(path: Path) -> tuple[int, bool]:
        return place.get(path, len(files)), path.relative_to(Path(__file__).parent).parts[0] in shortest

    items[:] = [item for path in sorted(files, key=order) for item in files[path]]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def helping_processes():
    """Ends with the session what `tests/helpers` may have started for all tests of it."""
    yield
    warm.stop()
    interpreter.stop()


@pytest.fixture(scope="module")
def forking():
    """In a module that uses it, trainings and jobs started by this process are forked (`warm.forking`)."""
    with warm.forking():
        yield


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """A folder of datasets that holds the one of recipe `smoke`. Read it, never write to it."""
    root = tmp_path_factory.mktemp("data")
    prepare(load_config("smoke").data, root)
    return root


@pytest.fixture(scope="session")
def smoke():
    """`smoke(*overrides)` is the small recipe's configuration."""

    def make(*overrides: str) -> RunConfig:
        return load_config("smoke", list(overrides))

    return make


@pytest.fixture(scope="session")
def kill_rank_0():
    """`kill_rank_0(run, step, after=None)` has a thread `kill -9` the process of rank 0 as soon as it has written `step`.

    And the checkpoint of step `after`, which is written beside the steps that follow it and may be complete later than they.
    """

    def watch(run: RunFolder, step: int, after: int | None) -> None:
        while True:
            events = read_events(run.events_file)
            written = after is None or (run.checkpoints / checkpoint_name(after)).is_dir()
            if written and any(event["kind"] == "step" and event["step"] >= step for event in events):
                os.kill([event["pid"] for event in events if event["kind"] == "start"][-1], signal.SIGKILL)
                return
            time.sleep(0.02)

    def start(run: RunFolder, step: int, after: int | None = None) -> None:
        threading.Thread(target=watch, args=(run, step, after), daemon=True).start()

    return start
