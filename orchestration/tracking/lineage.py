"""The lineage of a run as tags of its run in MLflow, where a branch is nested below its parent."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...pipeline.run.identity import run_id
from ...pipeline.run.lineage import shown_lineage
from ...pipeline.run.reader import RunReader
from .client import newest_run
from .evaluations import PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

BEGINS_TAG, CONTENT_TAG, CHANGES_TAG = "echo_lm.begins_from", "echo_lm.content", "echo_lm.changes"
STUDY_TAG = "echo_lm.study"
TAG_CHARACTERS = 5000


def send_lineage(client: "MlflowClient", experiment: str, run: str, run_folder: Path) -> None:
    """Set the tags of the run with MLflow's id `run`; one without a lineage has none.

    A run that belongs to a study stays below the study. Branches beside it that were recorded before it are put below it.
    """
    in_study = STUDY_TAG in client.get_run(run).data.tags
    for name, _ in () if in_study else RunReader(run_folder).children():
        branch = newest_run(client, experiment, run_id(run_folder.resolve().parent / name))
        if branch and PARENT_TAG not in client.get_run(branch).data.tags:
            client.set_tag(branch, PARENT_TAG, run)
    lineage = shown_lineage(run_folder)
    if lineage is None:
        return
    tags = {}
    if changes := lineage.changes():
        tags[CHANGES_TAG] = "; ".join(changes)
    if parent := lineage.parent:
        tags |= {BEGINS_TAG: str(parent), CONTENT_TAG: parent.content}
        if parent.run_id and PARENT_TAG not in client.get_run(run).data.tags:
            above = newest_run(client, experiment, parent.run_id)
            tags |= {PARENT_TAG: above} if above else {}
    for key, value in tags.items():
        client.set_tag(run, key, value[:TAG_CHARACTERS])
