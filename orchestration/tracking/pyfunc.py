"""The model of a run as MLflow loads it, `mlflow.pyfunc.load_model("models:/quickstart/1")`; MLflow imports this module by name."""

import json
from pathlib import Path
from typing import Any

from ...models.common.errors import UserError
from ...models.common.files import sha256_file

# Beside MLflow's description of a model whose weights are not beside it: their folder, and the hash of each file in it.
REFERENCE = "checkpoint.json"
WEIGHTS = "model.safetensors"


class NextToken:
    """The model object that MLflow loads: predicts the next token of sequences."""

    def __init__(self, folder: Path):
        """Load the weights in `folder`."""
        from ...models import from_pretrained  # imports torch

        self.model = from_pretrained(folder).eval()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Log-probabilities of the token that follows each sequence, float `[B, vocabulary]`.

        Args:
            model_input: token ids, int `[B, T]`: an array, lists of one length, or a data frame with a row a sequence.
            params: none are known.
        """
        import numpy as np
        import torch

        tokens = torch.from_numpy(np.asarray(model_input).astype(np.int64))
        with torch.no_grad():
            logits = self.model(tokens)[:, -1]
        return torch.log_softmax(logits.float(), dim=-1).numpy()


def _load_pyfunc(path: str) -> NextToken:
    """Load the model in a folder; MLflow calls this function by its name.

    Raises:
        UserError: the weights lie in the folder of a run that is not here, or they are others than those that were recorded.
    """
    folder, reference = Path(path), Path(path) / REFERENCE
    if (folder / WEIGHTS).is_file() or not reference.is_file():
        return NextToken(folder)
    stored = json.loads(reference.read_text(encoding="utf-8"))
    weights = Path(stored["weights"])
    if not (weights / WEIGHTS).is_file():
        raise UserError(
            f"{weights} is not here: the checkpoint was removed, it is on another machine, or its run was moved "
            "(`echo-lm track RUN` at its new place mends that)"
        )
    for name, expected in stored["sha256"].items():
        file = weights / Path(name).name
        if not file.is_file() or sha256_file(file) != expected:
            raise UserError(f"{file} is missing, or another one than was recorded")
    return NextToken(weights)
