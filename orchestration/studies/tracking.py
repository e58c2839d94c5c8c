"""The record of a study in MLflow: one parent run with the fits and the report, one child a cell, from files alone."""

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file
from ...pipeline.run.folder import RunFolder
from ..tracking.client import RUN_TAG, default_tracking_uri, equals, experiment_id, mlflow_client
from ..tracking.errors import explain
from ..tracking.lineage import STUDY_TAG
from ..tracking.mlflow import Tracker
from ..tracking.points import flatten
from ..tracking.values import Refusal, metric, mlflow_key, number, params, send
from .folder import StudyFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

ARTIFACTS = (
    "plan.json",
    "learning_rate.json",
    "fit.json",
    "spending.json",
    "report.md",
    "report.html",
    "figures/*.png",
)
HASH_TAG = "echo_lm.sha256"


def track_study(folder: StudyFolder, tracking_uri: str | None = None) -> str:
    """Replay a study into MLflow, finished or not; a repetition adds nothing.

    Returns:
        the id of the parent run.

    Raises:
        UserError: no study, or MLflow cannot be reached.
    """
    plan = folder.load_plan()
    uri = tracking_uri or default_tracking_uri(folder.path)
    try:
        client = mlflow_client(uri)
        parent = _parent(client, uri, folder)
        refused = _send_parameters(client, parent, plan.study.model_dump(mode="json"))
        for name, why in [*refused, *_send_metrics(client, parent, folder)]:
            logger.warning("MLflow does not take %s of %s (%s); the files have it", name, folder.path, why)
        _send_artifacts(client, parent, folder)
        for cell in (*plan.trunks, *plan.cells):
            if RunFolder(folder.run(cell)).exists():
                tags = {"mlflow.parentRunId": parent, STUDY_TAG: plan.study.name, "echo_lm.family": cell.family}
                Tracker(folder.run(cell), uri, tags).send()
        finished = len(folder.results(plan)) == len(plan.cells)
        if finished:
            client.set_terminated(parent, "FINISHED")
        else:
            client.update_run(parent, "RUNNING")
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:  # whatever MLflow's client raises: errors of HTTP, SQL, files
        raise UserError(f"{explain(error, uri)}, and run this again") from error
    return parent


def _parent(client: "MlflowClient", uri: str, folder: StudyFolder) -> str:
    experiment = experiment_id(client, uri)
    identity = f"study-{folder.path.resolve().name}"
    runs = client.search_runs([experiment], filter_string=equals(RUN_TAG, identity), max_results=1)
    if runs:
        return runs[0].info.run_id
    return client.create_run(experiment, tags={RUN_TAG: identity}, run_name=identity).info.run_id


def _send_parameters(client: "MlflowClient", parent: str, study: dict[str, Any]) -> list[Refusal]:
    """Send the study's configuration, flattened; MLflow never changes a parameter."""
    sent = client.get_run(parent).data.params
    return send(client, parent, "params", [item for item in params(dict(flatten(study))) if item.key not in sent])


def _send_metrics(client: "MlflowClient", parent: str, folder: StudyFolder) -> list[Refusal]:
    """Send the fits as metrics; a value that changed since (more cells, another fit) is added as the next step."""
    if not folder.fit_file.is_file():
        return []
    values = fit_metrics(read_json(folder.fit_file))
    time = int(folder.fit_file.stat().st_mtime * 1000)
    metrics, refused = [], []
    for name, stored in values.items():
        key, value = mlflow_key(name), number(stored)
        if value is None:
            refused.append((key, f"{stored} is no finite number"))
            continue
        history = client.get_metric_history(parent, key)
        if not history or max(history, key=lambda entry: entry.step).value != value:
            metrics.append(metric(key, value, time, len(history)))
    return [*refused, *send(client, parent, "metrics", metrics)]


def fit_metrics(fit: dict[str, Any]) -> dict[str, float]:
    """The numbers of a `fit.json` that are shown as metrics, by name."""
    values = {"cells": fit["cells"]}
    for law in fit["laws"]:
        for name in ("E", "A", "B", "alpha", "beta"):
            if law[name]:
                values |= {f"{law['family']}/{name}/{key}": law[name][key] for key in ("value", "low", "high")}
    return values | {
        f"extrapolation_error/{prediction['cell']}": prediction["error"] for prediction in fit["predictions"]
    }


def _send_artifacts(client: "MlflowClient", parent: str, folder: StudyFolder) -> None:
    """Upload files that MLflow lacks or has in another version; their hashes are kept in a tag."""
    recorded: dict[str, str] = {}
    with contextlib.suppress(ValueError):  # a tag that MLflow cut: all files are sent again
        recorded = json.loads(client.get_run(parent).data.tags.get(HASH_TAG, "{}"))
    sent = dict(recorded)
    for path in [path for pattern in ARTIFACTS for path in sorted(folder.path.glob(pattern))]:
        name = path.relative_to(folder.path).as_posix()
        digest = sha256_file(path)[:12]  # MLflow cuts tags at 8,000 characters
        if recorded.get(name) != digest:
            where = Path(name).parent.as_posix()
            client.log_artifact(parent, str(path), None if where == "." else where)
            sent[name] = digest
    if sent != recorded:
        client.set_tag(parent, HASH_TAG, json.dumps(sent))
