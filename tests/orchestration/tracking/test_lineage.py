"""The lineage of a run in MLflow: a branch stands below its parent and names it by content."""

from echo_lm.models.common.files import write_json
from echo_lm.orchestration.tracking.mlflow import track
from echo_lm.pipeline.run.lineage import Lineage, Parent, Segment
from tests.helpers.tracked_runs import client


def test_a_branch_stands_below_its_parent_and_says_what_changed(run_folder):
    trunk = track(run_folder)
    child = run_folder.with_name("child")
    child.mkdir()
    (child / "config.yaml").write_text((run_folder / "config.yaml").read_text())
    write_json(child / "identity.json", {"run_id": "c" * 32, "path": str(child), "inode": child.stat().st_ino})
    identity = client(run_folder).get_run(trunk).data.tags["echo_lm.run_id"]
    parent = Parent(
        run="small", path=str(run_folder), run_id=identity, step=20, tokens=1280, what="everything", content=64 * "a"
    )
    rates = [
        Segment(step=step, run="x", identity="", config={"train": {"learning_rate": rate}})
        for step, rate in ((0, 1), (20, 2))
    ]
    Lineage(parent=parent, segments=tuple(rates)).write(child)
    tags = client(run_folder).get_run(track(child)).data.tags
    assert tags["mlflow.parentRunId"] == trunk
    assert tags["echo_lm.begins_from"] == "small at step 20 (everything, content aaaaaaaaaaaa)"
    assert tags["echo_lm.content"] == 64 * "a"
    assert tags["echo_lm.changes"] == "from step 20 on train.learning_rate 1 -> 2"
