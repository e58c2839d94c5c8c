"""The final weights of a run in MLflow's registry, as a model that `mlflow.pyfunc.load_model` opens."""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ...evals.layout import complete_checkpoints
from ...models.common.run_layout import MODEL

if TYPE_CHECKING:
    from mlflow import MlflowClient

CARD_CHARACTERS = 5000  # of the description of a model's version, which some databases limit
LOADER = "echo_lm.orchestration.tracking.pyfunc"
ALIAS = "final"


def model_name(run_folder: Path) -> str:
    """The name of a run's registered model: MLflow refuses `/` and `:`, and searches with `'` go wrong."""
    return re.sub(r"[/:'\"%]", "_", run_folder.resolve().name)


def register(client: "MlflowClient", run_id: str, run_folder: Path, card: str) -> None:
    """Register the weights of the last checkpoint, with the model card as description; nothing if it was done.

    Args:
        run_id: id of the run in MLflow.
    """
    from mlflow.exceptions import MlflowException

    if client.search_model_versions(f"run_id='{run_id}'"):
        return
    folder, _ = list(complete_checkpoints(run_folder))[-1]
    client.log_artifacts(run_id, str(folder / MODEL), MODEL)
    _send_description(client, run_id)
    name = model_name(run_folder)
    with contextlib.suppress(MlflowException):  # it exists already
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL}"
    version = client.create_model_version(name, source=source, run_id=run_id, description=card[:CARD_CHARACTERS])
    client.set_registered_model_alias(name, ALIAS, version.version)


def _send_description(client: "MlflowClient", run_id: str) -> None:
    """Send the file `MLmodel`, by which MLflow knows how to load the weights beside it."""
    from mlflow import pyfunc
    from mlflow.models import Model

    model = Model(artifact_path=MODEL, run_id=run_id)
    pyfunc.add_to_model(model, loader_module=LOADER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "MLmodel"
        model.save(str(path))
        client.log_artifact(run_id, str(path), MODEL)
