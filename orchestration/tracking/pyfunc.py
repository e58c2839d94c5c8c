"""The model of a run as MLflow loads it, `mlflow.pyfunc.load_model("models:/quickstart/1")`; MLflow imports this module by name."""

from pathlib import Path
from typing import Any


class NextToken:
    """Predicts the next token of sequences."""

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
    """Called by MLflow with the folder of the model."""
    return NextToken(Path(path))
