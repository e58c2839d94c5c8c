"""`echo-lm compile`: what a recipe needs, over several processes, and only what is missing."""

import os
import subprocess
import sys

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.launch import compile as command
from echo_lm.orchestration.launch.compile import compile_run
from tests.test_layout import ROOT

TWICE = """
from echo_lm.orchestration.launch.compile import compile_run
from echo_lm.pipeline.config import load_config

config = load_config("smoke", ["model.preset=mamba2-1m", "model.d_model=128", "train.precision=bf16"])
for workers in (2, None):
    compile_run(config, "h200", workers)
"""


def test_a_recipe_is_compiled_once(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", TWICE],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if line.startswith("smoke: ")]
    assert lines[0].startswith("smoke: 9 kernels compiled for sm_90, 0 were there already, ")
    assert lines[1].startswith("smoke: 0 kernels compiled for sm_90, 9 were there already, ")
    assert lines[1].endswith(f"; cache: {tmp_path}")
    assert len(list(tmp_path.glob("*/*.cubin"))) == 9


def test_mistakes_are_one_line(smoke, monkeypatch):
    with pytest.raises(UserError, match="--device: unknown GPU 'p100': one of a10"):
        compile_run(smoke(), "p100", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--device: there is no NVIDIA GPU here: name one, such as h200 or sm_90"):
        compile_run(smoke(), None, None)
    monkeypatch.setattr(command, "TRITON", False)
    with pytest.raises(UserError, match=r"Triton is not installed here: pip install 'echo-lm\[gpu\]'"):
        compile_run(smoke(), "h200", None)
