"""`echo-lm status` from files alone, with everything dead."""

import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from echo_lm.models.common.files import write_json
from echo_lm.orchestration.monitor.status import Status, find_runs
from echo_lm.orchestration.monitor.summary import read_run, suite_name
from echo_lm.pipeline.run.events import EventLog
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.reader import RunReader
from echo_lm.pipeline.run.supervision import record_event


@pytest.fixture
def run(tmp_path, smoke, data_root) -> RunFolder:
    """A run at step 20 of 30, on two nodes, with one evaluation done, one given up, one to come."""
    config = smoke("evaluation.suites=[language,recall-quick]")
    run = RunFolder(tmp_path / "runs" / "smoke")
    run.prepare(config, data_root / config.data.name)
    with EventLog(run.events_file) as log:
        for step in range(1, 21):
            sources = {"epochs": {"web": step / 16, "code": 0.25}, "loss_by_source": {"web": 2.75}}
            log.write("step", step=step, loss=3.0, tokens=step * 512, tokens_per_second=1024.0, mfu=0.41, **sources)
    write_json(run.checkpoints / "step_00000010" / "complete.json", {"step": 10, "tokens": 5120})
    write_json(run.checkpoints / "step_00000020" / "complete.json", {"step": 20, "tokens": 10240})
    write_json(run.evals / "step_00000010" / "language.json", {})
    record_event(run, "evaluation_failed", step=10, suite="recall-quick", message="no memory")
    record_event(run, "lost", what="node", name="node-b", message="rank 1 on node-b: the node died")
    for rank, node in enumerate(("node-a", "node-a", "node-c")):
        heartbeat = {"worker_group": "g", "rank": rank, "world": 3, "node": node, "pid": 1, "step": 20, "where": ""}
        path = run.heartbeats / f"rank_{rank:05d}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(heartbeat | {"time": time.time()}))
        age = 100 if rank == 2 else -500  # good for as long as a test may take
        os.utime(path, (time.time() - age,) * 2)
    return run


def test_everything_is_read_from_the_files(run):
    summary = read_run(RunReader(run.path)).summary(time.time())
    assert (summary.state, summary.step, summary.steps) == ("running", 20, 30)
    assert summary.mfu == 0.41
    assert summary.eta_seconds == pytest.approx(10 * 512 / 1024)
    assert (summary.done, summary.pending, summary.failed, summary.checkpoint) == (1, 2, 1, 20)
    assert summary.nodes == (("node-a", 2),), "the beat of node-c is old"
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Status().table([run]))
    text = console.export_text()
    assert "41.0%" in text
    assert "smoke: text: web 1.25 epochs, loss 2.750; code 0.25 epochs" in text
    assert "1/4, 1 failed" in text
    assert "node-a x2" in text
    assert "lost a node: rank 1 on node-b: the node died" in text
    later = read_run(RunReader(run.path)).summary(time.time() + 1000)
    assert (later.state, later.nodes, later.eta_seconds) == ("crashed", (), None)


def test_each_run_is_one_line_whatever_its_name(tmp_path):
    for name in ("one", "two\nlines", "[red]three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"train: {{steps: {len(name)}}}")
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Status().table(find_runs([], tmp_path)))
    lines = console.export_text().splitlines()
    assert [line.split()[0] for line in lines] == ["run", "[red]three", "one", "two"]
    assert ["0/10" in lines[1], "0/3" in lines[2], "two lines" in lines[3] and "0/9" in lines[3]] == [True] * 3


def test_the_name_of_a_suite_stands_in_its_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: other\nlanguage: {}\n")
    assert suite_name(str(tmp_path / "mine.yaml")) == "other"
    assert suite_name(str(tmp_path / "gone.yaml")) == "gone"
    assert suite_name("recall-quick") == "recall-quick"


def test_watch_goes_on_until_interrupted(run):
    # What a script starts in the background ignores SIGINT, and so do its children.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from echo_lm.orchestration.cli.main import main; main()"
    command = [sys.executable, "-c", code, "status", "--watch", "--runs", str(run.path.parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        first = [process.stdout.readline() for _ in range(2)]
        assert "evaluations" in first[0]
        assert "smoke" in first[1]
        with EventLog(run.events_file) as log:
            log.write("step", step=21, loss=3.0, tokens=21 * 512, tokens_per_second=1024.0, mfu=0.41)
        for line in process.stdout:
            if "21/30" in line:
                break
        process.send_signal(2)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
