"""The process that compiles a run's kernels beside the start of its training."""

import json
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from echo_lm.pipeline.compilation.beside import VARIABLE, log_of, start_compilation
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.run.events import read_events
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.stop_request import request_stop
from tests.test_layout import ROOT


@pytest.fixture
def run_folder(tmp_path, data_root, smoke, monkeypatch):
    """A run whose model launches no Triton kernel of ours, so that nothing is compiled."""
    monkeypatch.setenv(VARIABLE, "h200")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    config = smoke("model.preset=transformer-1m", "model.d_model=64", "train.steps=5000", "evaluation.suites=[]")
    run = RunFolder(tmp_path / "run")
    run.prepare(config, data_root / config.data.name)
    return run


def entries(run_path):
    """The log of the process, once it has ended."""
    while True:
        lines = log_of(run_path).read_text().splitlines()
        if lines and "seconds" in lines[-1]:
            return [json.loads(line) for line in lines if line]
        time.sleep(0.05)


def compilations(run):
    return [event for event in read_events(run.events_file) if event["kind"] == "compile"]


def stop_once_compiled(run):
    """The process that compiles may need longer than a short training."""
    while not compilations(run):
        time.sleep(0.1)
    request_stop(run, "the test has seen enough")


def test_its_log_has_the_kernels_and_its_end(run_folder):
    assert start_compilation(run_folder.path) is not None
    first, last = entries(run_folder.path)
    assert first == {"kernels": {}}
    assert last["seconds"] > 0.5, "it imports torch"


def test_it_can_be_stopped_and_its_end_is_in_the_log_however_it_ends(run_folder, tmp_path):
    begun = time.monotonic()
    start_compilation(run_folder.path).stop()
    (last,) = entries(run_folder.path)
    assert last["seconds"] <= time.monotonic() - begun < 1.5, "it takes seconds to import torch"
    start_compilation(tmp_path / "nowhere")
    assert [*last] == [*entries(tmp_path / "nowhere")[0]]


def test_one_rank_of_a_node_starts_it_and_only_where_there_is_a_gpu(run_folder, monkeypatch):
    log = log_of(run_folder.path)
    log.parent.mkdir()
    log.write_text("of an earlier start")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert start_compilation(run_folder.path) is None
    assert log.exists(), "the first rank's may be in it"
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv(VARIABLE, "off")
    assert start_compilation(run_folder.path) is None
    assert not log.exists()
    monkeypatch.delenv(VARIABLE)
    assert start_compilation(run_folder.path) is None
    monkeypatch.setenv(VARIABLE, "on")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert start_compilation(run_folder.path) is None


def test_a_training_records_its_start_by_phase_and_what_was_compiled_beside_it(run_folder):
    stopping = threading.Thread(target=stop_once_compiled, args=(run_folder,))
    stopping.start()
    launch(run_folder, run_folder.load_config())
    stopping.join()
    events = read_events(run_folder.events_file)
    (fields,) = compilations(run_folder)
    assert (fields["kernels"], fields["compiled"], fields["waited_seconds"]) == (0, 0, 0.0)
    assert fields["seconds"] > 0.5
    (startup,) = [event for event in events if event["kind"] == "startup"]
    assert [event["kind"] for event in events if event["kind"] != "compile"][:3] == ["start", "step", "startup"]
    phases = ["command", "imports", "process_group", "data", "engine", "state", "kernels", "first_step"]
    assert list(startup["phases"]) == phases
    assert min(startup["phases"].values()) >= 0
    since_launch = startup["time"] - psutil.Process().create_time()  # the command is this process
    assert startup["total_seconds"] == pytest.approx(since_launch, abs=0.2)


def test_it_ends_with_the_training_process_and_all_that_compile_for_it(tmp_path, data_root, smoke, monkeypatch):
    monkeypatch.setenv(VARIABLE, "h200")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    config = smoke("model.d_model=128")  # a minute's work for a core
    run = RunFolder(tmp_path / "run")
    run.prepare(config, data_root / config.data.name)
    code = "import sys, time; from pathlib import Path\n"
    code += "from echo_lm.pipeline.compilation.beside import start_compilation as start\n"
    code += "print(start(Path(sys.argv[1]))._process.pid, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as training:
        child = psutil.Process(int(training.stdout.readline()))
        while not (compiling := child.children()):
            time.sleep(0.05)
        training.send_signal(signal.SIGKILL)
    assert psutil.wait_procs([child, *compiling], timeout=10)[1] == []
