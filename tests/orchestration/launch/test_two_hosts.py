"""`echo-lm run` over two hosts, which are network namespaces of this machine (`make test-netns`)."""

import json
import os
import re
import subprocess
import sys

import pytest

from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.ray_nodes import Node, two_hosts, wait_for_nodes

pytestmark = pytest.mark.netns

ECHO_LM = [sys.executable, "-c", "from echo_lm.orchestration.cli.main import main; main()"]
OVERRIDES = ["train.steps=40", "run.checkpoint_every=10", "data.unit_bytes=80000", "run.workers=2"]
SECONDS = 400


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over both hosts to its end, and what it printed."""
    root = tmp_path_factory.mktemp("two-hosts")
    with two_hosts() as (a, b):
        head = f"{a.address}:6379"
        nodes = [
            Node("host-a", head, a, is_head=True, folder=root),
            Node("host-b", head, b, folder=root),
        ]
        try:
            command = [*a.prefix, *ECHO_LM, "run", "smoke", *OVERRIDES, "--address", head]
            command += ["--runs", str(root / "runs"), "--data", str(root / "data")]
            wait_for_nodes(a, head, 2)
            environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
            process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
        finally:
            for node in nodes:
                node.stop()
    assert process.returncode == 0, process.stdout + process.stderr
    return RunFolder(root / "runs" / "smoke"), process.stdout, root


def test_a_worker_was_on_each_host(finished):
    run, _, _ = finished
    (start,) = [event for event in read_events(run.events_file) if event["kind"] == "start"]
    assert sorted(start["nodes"]) == ["host-a", "host-b"]


def test_both_hosts_tokenized(finished):
    _, output, _ = finished
    lines = [line for line in output.splitlines() if line.startswith("slices by node:")]
    assert lines
    assert all("host-a" in line and "host-b" in line for line in lines[-1:])


def test_both_hosts_evaluated(finished):
    run, _, _ = finished
    evaluations = [event for event in read_events(run.events_file) if event["kind"] == "evaluation"]
    assert {event["node"] for event in evaluations} == {"host-a", "host-b"}
    assert sorted(event["step"] for event in evaluations) == [10, 20, 30, 40]
    assert len(list(run.evals.glob("step_*/language.json"))) == 4


def test_the_curve_is_that_of_one_host(finished, tmp_path):
    run, _, root = finished
    config = load_config("smoke", OVERRIDES)
    reference = RunFolder(tmp_path / "alone")
    reference.prepare(config, root / "data" / config.data.name)
    launch(reference, config)
    curves = [[event["loss"] for event in steps(read_events(r.events_file))] for r in (run, reference)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_environment_names_nothing_of_the_other_host(finished):
    run, _, _ = finished
    assert json.loads((run.path / "environment.json").read_text())["host"].startswith("echo-")


def test_a_host_without_the_shared_folder_is_named_before_anything_trains(tmp_path):
    """The second host sees an empty disk where the first one has its runs."""
    runs = tmp_path / "runs"
    runs.mkdir()
    with two_hosts() as (a, b):
        head = f"{a.address}:6379"
        b.mounts = [f"mount -t tmpfs tmpfs {runs}"]
        nodes = [Node("host-a", head, a, is_head=True, folder=tmp_path), Node("host-b", head, b, folder=tmp_path)]
        try:
            wait_for_nodes(a, head, 2)
            command = [*a.prefix, *ECHO_LM, "run", "smoke", *OVERRIDES, "--address", head]
            command += ["--runs", str(runs), "--data", str(tmp_path / "data")]
            environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
            process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
        finally:
            for node in nodes:
                node.stop()
    assert process.returncode == 2
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("echo-lm:")]
    assert re.search(r"node host-b \(rank [01]\) does not share", line)
    assert "Traceback" not in process.stderr
    assert not steps(read_events(runs / "smoke" / "events.jsonl"))
