"""The record of a study in MLflow: one parent run with the fits and the report, one child a cell, from files alone."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file
from ...pipeline.run.folder import RunFolder
from ..tracking.client import default_tracking_uri, experiment_id, mlflow_client, one_line
from ..tracking.mlflow import METRICS_A_CALL, PARAM_CHARACTERS, PARAMS_A_CALL, RUN_TAG, Tracker
from ..tracking.points import chunks, flatten
from .folder import StudyFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = ("plan.json", "learning_rate.json", "fit.json", "report.md", "report.html", "figures/*.png")
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
        _send_parameters(client, parent, plan.study.model_dump(mode="json"))
        _send_metrics(client, parent, folder)
        _send_artifacts(client, parent, folder)
        for cell in plan.cells:
            if RunFolder(folder.run(cell)).exists():
                tags = {"mlflow.parentRunId": parent, "echo_lm.study": plan.study.name, "echo_lm.family": cell.family}
                Tracker(folder.run(cell), uri, tags).send()
        finished = len(folder.results(plan)) == len(plan.cells)
        if finished:
            client.set_terminated(parent, "FINISHED")
        else:
            client.update_run(parent, "RUNNING")
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:  # any error below MLflow's client: HTTP, SQL, the file system
        raise UserError(f"MLflow at {uri} does not answer ({one_line(error)}): start it and run this again") from error
    return parent


def _parent(client: "MlflowClient", uri: str, folder: StudyFolder) -> str:
    experiment = experiment_id(client, uri)
    identity = f"study-{folder.path.resolve().name}"
    runs = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
    if runs:
        return runs[0].info.run_id
    return client.create_run(experiment, tags={RUN_TAG: identity}, run_name=identity).info.run_id


def _send_parameters(client: "MlflowClient", parent: str, study: dict[str, Any]) -> None:
    """Send the study's configuration, flattened; MLflow never changes a parameter."""
    from mlflow.entities import Param

    sent = client.get_run(parent).data.params
    values = {key: str(value)[:PARAM_CHARACTERS] for key, value in flatten(study)}
    params = [Param(key, value) for key, value in values.items() if key not in sent]
    for chunk in chunks(params, PARAMS_A_CALL):
        client.log_batch(parent, params=chunk)


def _send_metrics(client: "MlflowClient", parent: str, folder: StudyFolder) -> None:
    """Send the fits as metrics; a value that changed since (more cells, another fit) is added as the next step."""
    from mlflow.entities import Metric

    if not folder.fit_file.is_file():
        return
    fit = read_json(folder.fit_file)
    values = {"cells": float(fit["cells"])}
    for law in fit["laws"]:
        for name in ("E", "A", "B", "alpha", "beta"):
            if law[name]:
                values |= {f"{law['family']}/{name}/{key}": number for key, number in law[name].items()}
    values |= {f"extrapolation_error/{prediction['cell']}": prediction["error"] for prediction in fit["predictions"]}
    time = int(folder.fit_file.stat().st_mtime * 1000)
    metrics = []
    for key, value in values.items():
        history = client.get_metric_history(parent, key)
        if not history or max(history, key=lambda metric: metric.step).value != value:
            metrics.append(Metric(key, value, time, len(history)))
    for chunk in chunks(metrics, METRICS_A_CALL):
        client.log_batch(parent, metrics=chunk)


def _send_artifacts(client: "MlflowClient", parent: str, folder: StudyFolder) -> None:
    """Upload files that MLflow lacks or has in another version; their hashes are kept in a tag."""
    recorded = json.loads(client.get_run(parent).data.tags.get(HASH_TAG, "{}"))
    sent = dict(recorded)
    for path in [path for pattern in ARTIFACTS for path in sorted(folder.path.glob(pattern))]:
        name = path.relative_to(folder.path).as_posix()
        digest = sha256_file(path)
        if recorded.get(name) != digest:
            where = Path(name).parent.as_posix()
            client.log_artifact(parent, str(path), None if where == "." else where)
            sent[name] = digest
    if sent != recorded:
        client.set_tag(parent, HASH_TAG, json.dumps(sent))
