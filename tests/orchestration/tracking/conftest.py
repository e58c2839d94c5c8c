"""Shared by the tests of the record in MLflow: a run folder with its database."""

import shutil
from pathlib import Path

import pytest
import yaml

from echo_lm.models.common.files import write_json
from echo_lm.pipeline.run.events import EventLog
from tests.helpers.tracked_runs import START, write_evaluation, write_steps


@pytest.fixture
def run_folder(tmp_path, empty_store) -> Path:
    """A run of 20 steps with one evaluation, a crash after step 12 that repeats steps 11 and 12, and its database."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    config = {"train": {"steps": 20, "learning_rate": 0.001}, "data": {"name": "toy", "sources": ["a", "b"]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(folder / "environment.json", {"run_id": "small-1", "git_commit": "abc123", "versions": {"torch": "2"}})
    with EventLog(folder / "events.jsonl") as log:
        log.write("start", time=START, step=0)
        write_steps(log, 1, 12)
        log.write("start", time=START + 100, step=10)
        write_steps(log, 11, 20, late=100)
        log.write("checkpoint", time=START + 121, step=20, path="checkpoints/step_00000020", seconds=0.5)
    write_evaluation(folder, 20, 0.75)
    return folder
