"""Training on the CPU of a machine with a GPU: the device that is asked for decides, not the one that DeepSpeed would find."""

import os
import subprocess

import pytest

from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.run.events import read_events
from tests.helpers.stopping import COMMAND, steps_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The dataset of recipe `smoke`. GPU machines run these tests without conftest.py, which has a fixture of it."""
    root = tmp_path_factory.mktemp("data")
    prepare(load_config("smoke").data, root)
    return root


@pytest.mark.gpu
@pytest.mark.parametrize(("environment", "device"), [({"CUDA_VISIBLE_DEVICES": ""}, "auto"), ({}, "cpu")])
def test_a_run_on_the_cpu_of_a_gpu_machine(environment, device, data, tmp_path):
    arguments = ["train", "smoke", "name=exp", f"run.device={device}", "train.steps=2", "run.workers=1"]
    command = [*COMMAND, *arguments, "--runs", str(tmp_path), "--data", str(data)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps_of(tmp_path / "exp") == 2
    (start,) = (event for event in read_events(tmp_path / "exp" / "events.jsonl") if event["kind"] == "start")
    assert start["device"] == "cpu"
