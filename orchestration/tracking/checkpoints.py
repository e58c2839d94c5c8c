"""The checkpoints of a run as models in MLflow, which `mlflow.pyfunc.load_model("models:/ID")` opens."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evals.layout import complete_checkpoints, complete_steps
from ...models.common.cached_files import is_inside
from ...models.common.files import write_json
from ...models.common.run_layout import CHECKPOINTS, MODEL, checkpoint_name
from ...pipeline.run.untrusted import whole
from .pyfunc import REFERENCE
from .values import plain_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

LOADER = "echo_lm.orchestration.tracking.pyfunc"
CHECKPOINT_TAG = "echo_lm.checkpoint"  # of a model: the name of its checkpoint, `step_00000100`
WEIGHTS_TAG = "echo_lm.weights"  # of a model: the folder of its weights, or COPIED
COPIED = "in MLflow"


class CheckpointModels:
    """The models of a run in MLflow, one a complete checkpoint.

    A model refers to the weights in the run's folder, by their path and hashes: copying each checkpoint would double what a run
    needs on disk. Those of the final one are copied (`copy_weights`).
    """

    def __init__(self, client: "MlflowClient", experiment: str, run: str, run_folder: Path):
        """Read from MLflow which models the run has; `run` is its id there."""
        self._client, self._experiment, self._run, self._folder = client, experiment, run, run_folder
        self._models: dict[str, LoggedModel] = {}
        for model in _all_models(client, experiment, run):
            if model.status != "READY":  # the process that created it died before it was complete
                client.delete_logged_model(model.model_id)
            elif name := model.tags.get(CHECKPOINT_TAG):
                self._models[name] = model

    def id_of(self, checkpoint: str) -> str | None:
        """MLflow's id of the model of a checkpoint, `step_00000100`; None if it was removed before it was sent."""
        return self._models[checkpoint].model_id if checkpoint in self._models else None

    def send(self) -> None:
        """Make models of the checkpoints that have none, and mend references to weights that were moved with their run."""
        if all(self._is_sent(checkpoint_name(step)) for step, _ in complete_steps(self._folder)):
            return
        for folder, record in complete_checkpoints(self._folder):
            step = whole(record.get("step"))
            weights = folder / MODEL
            if (
                self._is_sent(folder.name)
                or step is None
                or not weights.is_dir()
                or not is_inside(weights, self._folder)
            ):
                continue
            if model := self._models.get(folder.name):  # the run was moved
                self._send_reference(model, folder, record)
            else:
                self._models[folder.name] = self._create(folder, step, record)

    def copy_weights(self, checkpoint: Path) -> str | None:
        """Copy the weights of a checkpoint to MLflow; returns the id of its model, None if it has none."""
        model = self._models.get(checkpoint.name)
        if model is None:
            return None
        for path in sorted((checkpoint / MODEL).iterdir()):
            if path.is_file() and is_inside(path, self._folder):
                self._client.log_model_artifact(model.model_id, str(path))
        self._tag(model, COPIED)
        return model.model_id

    def _is_sent(self, checkpoint: str) -> bool:
        model = self._models.get(checkpoint)
        return model is not None and model.tags.get(WEIGHTS_TAG) in (COPIED, self._weights(checkpoint))

    def _weights(self, checkpoint: str) -> str:
        return str(self._folder.resolve() / CHECKPOINTS / checkpoint / MODEL)

    def _create(self, folder: Path, step: int, record: dict[str, Any]) -> "LoggedModel":
        from mlflow import pyfunc
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        client = self._client
        model = client.create_logged_model(
            self._experiment,
            name=f"{plain_name(self._folder.resolve().name)}-{folder.name}",
            source_run_id=self._run,
            tags={CHECKPOINT_TAG: folder.name},
            params={"step": str(step), "tokens": str(whole(record.get("tokens")))},
        )
        description = Model(artifact_path=model.artifact_location, run_id=self._run, model_id=model.model_id)
        pyfunc.add_to_model(description, loader_module=LOADER)
        with tempfile.TemporaryDirectory() as place:
            description.save(str(Path(place) / "MLmodel"))
            client.log_model_artifacts(model.model_id, place)
        self._send_reference(model, folder, record)
        client.log_outputs(self._run, [LoggedModelOutput(model.model_id, step)])
        return client.finalize_logged_model(model.model_id, "READY")

    def _send_reference(self, model: "LoggedModel", folder: Path, record: dict[str, Any]) -> None:
        hashes = record.get("sha256")
        named = hashes if isinstance(hashes, dict) else {}
        own = {name: value for name, value in named.items() if name.startswith(f"{MODEL}/")}
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / REFERENCE
            write_json(path, {"weights": self._weights(folder.name), "sha256": own})
            self._client.log_model_artifact(model.model_id, str(path))
        self._tag(model, self._weights(folder.name))

    def _tag(self, model: "LoggedModel", weights: str) -> None:
        self._client.set_logged_model_tags(model.model_id, {WEIGHTS_TAG: weights})
        model.tags[WEIGHTS_TAG] = weights


def _all_models(client: "MlflowClient", experiment: str, run: str) -> list["LoggedModel"]:
    models, token = [], None
    while True:
        page = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run}'", page_token=token)
        models += page
        token = page.token
        if not token:
            return models
