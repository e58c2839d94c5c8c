"""`echo-lm submit` hands a run to a cluster's job server, and tells mistakes before it does."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.launch.submit import submit_run
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.ports import free_port
from tests.helpers.ray_nodes import RAY, kill_tree
from tests.helpers.trainings import train_all


@pytest.fixture
def head(tmp_path):
    """A Ray head with its job server; the address of that."""
    ports = [free_port() for _ in range(3)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [*RAY, "--head", f"--port={ports[0]}", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}"]
    # The agent takes the jobs. Every head wants the same port for it: where another has that one, no job is taken.
    command += [f"--dashboard-agent-listen-port={ports[2]}"]
    with open(tmp_path / "head.log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--object-store-memory=100000000"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while socket.socket().connect_ex(("127.0.0.1", ports[1])):
        assert process.poll() is None
        assert time.monotonic() < deadline, "no job server came up"
        time.sleep(0.2)
    yield f"http://127.0.0.1:{ports[1]}"
    kill_tree(process.pid)


def test_a_submitted_run_is_run_on_the_head(head, tmp_path, smoke, data_root, capfd):
    """One that is complete, so that the job ends soon: what it says comes from `echo-lm run` with our paths."""
    overrides = ["train.steps=10", "run.workers=1", "evaluation.suites=[]"]
    config = smoke(*overrides)
    run = RunFolder(tmp_path / "runs" / "smoke")
    run.prepare(config, data_root / config.data.name)
    train_all([run.path])
    job = submit_run("smoke", overrides, head, tmp_path / "runs", data_root, None, trust=True, follow=True)
    output = capfd.readouterr().out
    assert job.startswith("smoke-")
    assert "--trust" in output
    assert f"{run.path}: data, training and evaluations are complete" in output
    assert (run.path / "report.md").is_file()


def test_mistakes_are_told_here_in_one_line(tmp_path):
    with pytest.raises(UserError, match="there is no recipe") as raised:
        submit_run("smok", [], "http://127.0.0.1:9", tmp_path, tmp_path, None, follow=False)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 did not take the job") as unreachable:
        submit_run("smoke", [], "http://127.0.0.1:9", tmp_path, tmp_path, None, follow=False)
    assert all("\n" not in str(error.value) for error in (raised, unreachable))
