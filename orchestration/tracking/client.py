"""Connection to MLflow: tracking URI, client, experiment."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


EXPERIMENT = "echo-lm"


def default_tracking_uri(run_folder: Path) -> str:
    """The default tracking URI: `mlflow.db` beside the folder that holds the runs."""
    return f"sqlite:///{Path(run_folder).resolve().parent.parent / 'mlflow.db'}"


def mlflow_client(uri: str) -> "MlflowClient":
    # Read by MLflow at its import or at calls: no telemetry, and failure within seconds if the server is down.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def experiment_id(client: "MlflowClient", uri: str) -> str:
    """The id of Echo-LM's experiment, created on the first call; for a sqlite file, artifacts lie beside it."""
    from mlflow.exceptions import MlflowException

    prefix = "sqlite:///"
    artifacts = str(Path(uri.removeprefix(prefix)).parent / "mlflow-artifacts") if uri.startswith(prefix) else None
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        except MlflowException:  # another process made it since
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
    return experiment.experiment_id


def one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
