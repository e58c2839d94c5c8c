"""The lineage of a run in MLflow: a branch stands below its parent and names it by content."""

from pathlib import Path

import pytest

from echo_lm.models.common.files import write_json
from echo_lm.orchestration.tracking.mlflow import track
from echo_lm.pipeline.run.identity import run_id
from echo_lm.pipeline.run.lineage import Lineage, Parent, Segment
from tests.helpers.tracked_runs import client


def branch_of(run_folder: Path) -> Path:
    """A run beside it that goes on from its step 20 with another rate."""
    child = run_folder.with_name("child")
    child.mkdir()
    (child / "config.yaml").write_text((run_folder / "config.yaml").read_text())
    write_json(child / "identity.json", {"run_id": "c" * 32, "path": str(child), "inode": child.stat().st_ino})
    position = {"step": 20, "tokens": 1280, "what": "everything", "content": 64 * "a"}
    parent = Parent(run="small", path=str(run_folder), run_id=run_id(run_folder), **position)
    rates = [
        Segment(step=step, run="x", identity="", config={"train": {"learning_rate": rate}})
        for step, rate in ((0, 1), (20, 2))
    ]
    Lineage(parent=parent, segments=tuple(rates)).write(child)
    return child


@pytest.mark.parametrize("first", ["parent", "branch"])
def test_a_branch_stands_below_its_parent_and_says_what_changed(run_folder, first):
    child = branch_of(run_folder)
    if first == "branch":
        track(child)
    trunk = track(run_folder)
    if first == "parent":
        track(child)
    below = client(run_folder).search_runs(["1"], filter_string=f"tags.mlflow.parentRunId = '{trunk}'")
    (branch,) = [run for run in below if "echo_lm.begins_from" in run.data.tags]  # the others are its evaluations
    assert branch.data.tags["echo_lm.begins_from"] == "small at step 20 (everything, content aaaaaaaaaaaa)"
    assert branch.data.tags["echo_lm.content"] == 64 * "a"
    assert branch.data.tags["echo_lm.changes"] == "from step 20 on train.learning_rate 1 -> 2"
