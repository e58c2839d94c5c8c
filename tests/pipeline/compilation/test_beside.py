"""The process that compiles a run's kernels beside the start of its training."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from echo_lm.pipeline.compilation.beside import VARIABLE, await_kernels, start_compilation
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.stop_signal import StopSignal
from tests.test_layout import ROOT


@pytest.fixture
def run_folder(tmp_path, data_root, smoke, monkeypatch):
    """A run whose model launches no Triton kernel of ours, so that nothing is compiled."""
    monkeypatch.setenv(VARIABLE, "h200")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    config = smoke("model.preset=transformer-1m", "model.d_model=64")
    run = RunFolder(tmp_path / "run")
    run.prepare(config, data_root / config.data.name)
    return run


def awaited(compilation, stop=None):
    events = []
    await_kernels(compilation, lambda kind, **fields: events.append((kind, fields)), stop or StopSignal())
    return events


def test_the_end_is_recorded_with_what_was_compiled(run_folder):
    ((kind, fields),) = awaited(start_compilation(run_folder.path))
    assert kind == "compile"
    assert (fields["kernels"], fields["done"], fields["compiled"]) == (0, 0, 0)
    assert 0 < fields["waited_seconds"] <= fields["seconds"]


def test_a_process_that_fails_is_a_warning_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "h200")
    ((kind, fields),) = awaited(start_compilation(tmp_path / "nowhere"))
    assert kind == "warning"
    assert "the compilation before training ended, see the log" in fields["message"]


def test_a_stop_signal_ends_it(run_folder):
    stop = StopSignal()
    stop.reason = "SIGTERM"
    begun = time.monotonic()
    compilation = start_compilation(run_folder.path)
    awaited(compilation, stop)
    assert time.monotonic() - begun < 1.5, "it takes seconds to import torch"


def test_one_rank_of_a_node_starts_it_and_only_where_there_is_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(VARIABLE, "h200")
    assert start_compilation(tmp_path) is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv(VARIABLE, "off")
    assert start_compilation(tmp_path) is None
    monkeypatch.delenv(VARIABLE)
    if not os.path.exists("/dev/nvidiactl"):
        assert start_compilation(tmp_path) is None
    assert awaited(None) == []


def test_it_ends_with_the_training_process_and_all_that_compile_for_it(tmp_path, data_root, smoke, monkeypatch):
    monkeypatch.setenv(VARIABLE, "h200")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    config = smoke("model.d_model=128")  # a minute's work for a core
    run = RunFolder(tmp_path / "run")
    run.prepare(config, data_root / config.data.name)
    code = "import sys, time; from echo_lm.pipeline.compilation.beside import start_compilation as start\n"
    code += "print(start(sys.argv[1])._process.pid, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as training:
        child = psutil.Process(int(training.stdout.readline()))
        while not (compiling := child.children()):
            time.sleep(0.05)
        training.send_signal(signal.SIGKILL)
    assert psutil.wait_procs([child, *compiling], timeout=10)[1] == []
