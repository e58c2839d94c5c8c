"""Shared by all tests: one small dataset, made once, and a small run configuration."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pathlib import Path

import pytest
import torch

from echo_lm.data_prep.prepare import prepare
from echo_lm.pipeline.config import RunConfig, load_config

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """A folder of datasets that holds the one of recipe `smoke`. Read it, never write to it."""
    root = tmp_path_factory.mktemp("data")
    prepare(load_config("smoke").data, root)
    return root


@pytest.fixture
def smoke():
    """`smoke(*overrides)` is the small recipe's configuration."""

    def make(*overrides: str) -> RunConfig:
        return load_config("smoke", list(overrides))

    return make
