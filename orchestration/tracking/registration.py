"""The final weights of a run in MLflow's registry, as a model that `mlflow.pyfunc.load_model` opens."""

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ...evals.layout import complete_checkpoints
from .checkpoints import CheckpointModels

if TYPE_CHECKING:
    from mlflow import MlflowClient

CARD_CHARACTERS = 5000  # of the description of a model's version, which some databases limit
ALIAS = "final"
VERSIONS_TAG = "mlflow.modelVersions"  # of a model: what MLflow's page shows as its registered versions


def model_name(run_folder: Path) -> str:
    """The name of a run's registered model: MLflow refuses `/` and `:`, and searches with `'` go wrong."""
    return re.sub(r"[/:'\"%]", "_", run_folder.resolve().name)


def register(client: "MlflowClient", run_id: str, run_folder: Path, card: str, models: CheckpointModels) -> None:
    """Register the model of the last checkpoint, with the model card as description; nothing if it was done.

    Args:
        run_id: id of the run in MLflow.
        models: of its checkpoints.
    """
    from mlflow.exceptions import MlflowException

    if client.search_model_versions(f"run_id='{run_id}'"):
        return
    model = models.copy_weights(list(complete_checkpoints(run_folder))[-1][0])
    if model is None:
        return
    name = model_name(run_folder)
    with contextlib.suppress(MlflowException):  # it exists already
        client.create_registered_model(name)
    # Not `models:/ID`: for that MLflow looks in the record that is set for the process.
    location = client.get_logged_model(model).artifact_location
    version = client.create_model_version(
        name, source=location, run_id=run_id, model_id=model, description=card[:CARD_CHARACTERS]
    )
    client.set_registered_model_alias(name, ALIAS, version.version)
    tag = json.dumps([{"name": name, "version": version.version}])  # as `mlflow.register_model` does
    client.set_logged_model_tags(model, {VERSIONS_TAG: tag})
