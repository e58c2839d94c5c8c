"""Connection to MLflow: tracking URI, client, experiment."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from .store import (
    artifacts_beside,
    check_writable,
    follow_artifacts,
    make_if_missing,
    remove_stray_folders,
    sqlite_file,
    sqlite_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

EXPERIMENT = "echo-lm"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow opens it as one of prompts and traces
CREATED_TAG = "echo_lm.created"  # of a run in MLflow: when it was made, in seconds
RUN_TAG = "echo_lm.run_id"  # of a run in MLflow: the id of its folder
LOCK_SECONDS = 300.0  # making MLflow's tables takes half a minute on a busy machine
_opened: dict[str, int] = {}  # inode of each sqlite file that this process opened, by tracking URI


def default_database(run_folder: Path) -> Path:
    """`mlflow.db` beside the folder that holds the runs."""
    return Path(run_folder).resolve().parent.parent / "mlflow.db"


def default_tracking_uri(run_folder: Path) -> str:
    """The default tracking URI, that of `default_database`."""
    return sqlite_uri(default_database(run_folder))


def mlflow_client(uri: str) -> "MlflowClient":
    """A client of the record at `uri`; makes a sqlite file that does not exist.

    Several processes may do that at once: one makes it, the others wait.
    """
    # Read by MLflow at its import or at calls: no telemetry, and failure within seconds if the server is down.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.CRITICAL
    )  # it logs errors that it also raises, with a trace
    database = sqlite_file(uri)
    if database is None:
        return MlflowClient(tracking_uri=uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(f".{database.name}.lock"), timeout=LOCK_SECONDS):
        make_if_missing(database, lambda new: MlflowClient(tracking_uri=new))
        check_writable(database)
        client = MlflowClient(tracking_uri=uri)
        follow_artifacts(database, EXPERIMENT)
        _reopen_if_replaced(client, uri, database)
    remove_stray_folders(uri)
    return client


def _reopen_if_replaced(client: "MlflowClient", uri: str, database: Path) -> None:
    """Close MLflow's connections to a file that was deleted or replaced since: MLflow keeps them as long as the process."""
    inode = database.stat().st_ino
    if _opened.setdefault(uri, inode) != inode:
        for store in (client._tracking_client.store, client._get_registry_client().store):
            store.engine.dispose()
        _opened[uri] = inode


def experiment_id(client: "MlflowClient", uri: str) -> str:
    """The id of Echo-LM's experiment, created on the first call; for a sqlite file, artifacts lie beside it.

    An experiment that was deleted in MLflow is restored with its runs: MLflow keeps its name until `mlflow gc`.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT)
    try:
        if experiment is None:
            database = sqlite_file(uri)
            artifacts = artifacts_beside(database) if database else None
            return client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=KIND)
        if not KIND.keys() & experiment.tags.keys():  # of an earlier version
            for key, value in KIND.items():
                client.set_experiment_tag(experiment.experiment_id, key, value)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
            logger.warning(
                "MLflow at %s: the experiment %s had been deleted; it is restored with its runs", uri, EXPERIMENT
            )
    except MlflowException:  # another process did it since
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None or experiment.lifecycle_stage == "deleted":
            raise
    return experiment.experiment_id


def newest_run(client: "MlflowClient", experiment: str, identity: str) -> str | None:
    """The id in MLflow of the run of a folder; None if there is none or it was deleted.

    Several are found where an experiment was deleted and restored, which brings back each of its runs: the one made last has the
    record.
    """
    runs = client.search_runs([experiment], filter_string=equals(RUN_TAG, identity), max_results=100)
    newest = max(runs, key=lambda run: float(run.data.tags.get(CREATED_TAG, 0)), default=None)
    return newest and newest.info.run_id


def equals(tag: str, value: str) -> str:
    """The filter of `search_runs` for a tag's value; one with both kinds of quotation marks fits any sign in the place of `'`."""
    if "'" in value and '"' in value:
        return f"tags.`{tag}` LIKE '{value.replace(chr(39), '_')}'"
    quote = '"' if "'" in value else "'"
    return f"tags.`{tag}` = {quote}{value}{quote}"
