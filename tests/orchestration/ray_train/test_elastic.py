"""An elastic run: four workers, a node lost, three; the node comes back, four again at a checkpoint; one loss curve."""

import subprocess
import sys
import time

import pytest

from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.monitoring.heartbeat import read_heartbeats
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.ray_nodes import Host, Node, wait_for_nodes

pytestmark = pytest.mark.slow

STEPS = 600
OVERRIDES = [
    "name=elastic",
    f"train.steps={STEPS}",
    "train.batch_tokens=768",  # 12 sequences: they divide by 4, 3 and 2
    "run.checkpoint_every=20",
    "run.keep_checkpoints=3",
    "run.workers=4",
    "run.min_workers=2",
    "evaluation.suites=[]",
    # Or rounding, which differs with the number of workers, grows a thousandfold in a hundred steps.
    "model.ska.ridge=0.1",
    "train.learning_rate=2e-4",
]


def test_four_three_four_is_one_curve(tmp_path):
    config = load_config("smoke", OVERRIDES)
    prepare(config.data, tmp_path / "data")
    head = "127.0.0.2:36379"
    nodes = [
        Node(
            f"node-{number}", head, Host(address=f"127.0.0.{number + 2}"), number == 0, int(number > 0), folder=tmp_path
        )
        for number in range(5)
    ]
    run = RunFolder(tmp_path / "runs" / "elastic")
    command = [
        sys.executable,
        "-c",
        "from echo_lm.orchestration.cli.main import main; main()",
        "run",
        "smoke",
        *OVERRIDES,
    ]
    command += ["--address", head, "--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
    wait_for_nodes(nodes[0].host, head, len(nodes))
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        wait_for(process, lambda: last_step(run) >= 30)
        lost_node = next(node for node in nodes if node.name == read_heartbeats(run)[-1].node)
        lost_node.kill(back=False)
        killed_at = last_step(run)
        wait_for(process, lambda: worlds(run)[-1] == 3 and last_step(run) > killed_at)
        lost_node.come_back()
        wait_for(process, lambda: worlds(run)[-1] == 4 and len(worlds(run)) > 2)
        assert process.wait(timeout=600) == 0
    finally:
        process.kill()
        for node in nodes:
            node.stop()
    events = read_events(run.events_file)
    assert [event for event in events if event["kind"] == "lost" and event["name"] == lost_node.name]
    starts = [event for event in events if event["kind"] == "start"]
    assert starts[0]["world_size"] == starts[-1]["world_size"] == 4
    assert [event["world_size"] for event in starts if event["world_size"] != 4] == [3]
    trained_steps = [event["step"] for event in events if event["kind"] == "step"]
    grown = next(number for number, event in enumerate(events) if event is starts[-1])
    before = [event["step"] for event in events[:grown] if event["kind"] == "step"][-1]
    assert before - starts[-1]["step"] < 20, "it grew right after a checkpoint, not in the middle between two"
    assert all(event["tokens"] == 768 * event["step"] for event in events if event["kind"] == "step")
    reference = RunFolder(tmp_path / "alone")
    plain = load_config("smoke", [*OVERRIDES, "run.workers=1", "run.min_workers=1"])
    reference.prepare(plain, tmp_path / "data" / config.data.name)
    launch(reference, plain)
    curves = [[event["loss"] for event in steps(read_events(r.events_file))] for r in (run, reference)]
    assert len(curves[0]) == STEPS <= len(trained_steps)
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def worlds(run: RunFolder) -> list[int]:
    return [event["world_size"] for event in read_events(run.events_file) if event["kind"] == "start"] or [0]


def last_step(run: RunFolder) -> int:
    return max((event["step"] for event in read_events(run.events_file) if event["kind"] == "step"), default=0)


def wait_for(process: subprocess.Popen, what, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
