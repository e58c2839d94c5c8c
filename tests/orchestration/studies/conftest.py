"""A study in a few lines, and records of its cells as if they had been run."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from echo_lm.orchestration.studies.config import StudyConfig
from echo_lm.orchestration.studies.plan import Plan, StudyCell
from echo_lm.orchestration.studies.results import CellResult, RecallRow

# Besiroglu et al. 2024 (arXiv 2404.10102), table 1.
TRUTH = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}

STUDY = """
name: toy
question: Does it work?
families: [echo, transformer]
sizes: [1m, 4m, 10m, 25m, 50m]
budgets: {tokens: [1.0e+7, 3.0e+7, 9.0e+7]}
learning_rate: {value: 2.0e-3, exponent: -0.25}
batch: {value: 16384}
data:
  name: python-stdlib-sample
  sources: [{kind: python-stdlib, limit_documents: 60}]
  tokenizer: {vocab_size: 512}
  heldout_fraction: 0.1
train: {sequence_length: 64}
hardware: {memory_gib: 80, tflops: 1.0}
"""


def law(n, d):
    """The published loss at `n` parameters and `d` tokens."""
    return TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]


@pytest.fixture
def study():
    """`study(key=value, ...)` is the toy study with top-level keys replaced."""

    def make(**changes) -> StudyConfig:
        return StudyConfig.model_validate(yaml.safe_load(STUDY) | changes)

    return make


@pytest.fixture
def study_file(tmp_path):
    """`study_file(key=value, ...)` is the path of the toy study with top-level keys replaced."""

    def make(**changes) -> Path:
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(STUDY) | changes))
        return path

    return make


def finished(cell: StudyCell, loss: float, recall: tuple[RecallRow, ...] = ()) -> CellResult:
    """A record of `cell` with this loss."""
    return CellResult(
        cell=cell,
        identity="-",
        loss=loss,
        metrics={},
        recall=recall,
        learning_rate=1e-3,
        seconds=60,
        training_seconds=50,
        tokens_per_second=1000,
        starts=1,
        hardware="paper and pencil",
        host="nowhere",
        git_commit=None,
        versions={},
    )


def finished_plan(plan: Plan, noise: float, seed: int = 0) -> list[CellResult]:
    """Records of all cells by the published law, echo 3% lower than the others, with relative noise."""
    random = np.random.default_rng(seed)
    return [
        finished(
            cell,
            law(cell.parameters, cell.tokens)
            * (0.97 if cell.family == "echo" else 1.0)
            * np.exp(noise * random.standard_normal()),
        )
        for cell in plan.cells
    ]


@pytest.fixture
def records():
    """`records(plan, noise, seed)` are the records of a plan by the published law."""
    return finished_plan


@pytest.fixture
def record():
    """`record(cell, loss, recall)` is a record of one cell."""
    return finished


@pytest.fixture(scope="session")
def published():
    """The published constants, and the loss they give as a function of parameters and tokens."""
    return TRUTH, law
