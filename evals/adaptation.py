"""A throw-away copy of a model that learns what recall questions look like: for checkpoints trained on text alone.

What it learns is the format; whether it can then recall at other lengths and in other tasks is the architecture's doing and
the pretraining's. The copy is never written anywhere.
"""

import copy
from pathlib import Path

import torch
import yaml

from ..data_prep.recall import RecallVocabulary
from ..models import EchoLM
from .config import RecallTraining
from .recall_training import RecallTrainer


def trained_on_recall(run_folder: Path) -> bool:
    """Whether a run's training mixture holds recall, by its `config.yaml`; True for a folder without one."""
    path = Path(run_folder) / "config.yaml"
    if not path.is_file():
        return True
    mixture = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("mixture") or {}
    return mixture.get("recall", True) is not None


def adapted_copy(
    model: EchoLM,
    vocabulary: RecallVocabulary,
    protocol: RecallTraining,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> EchoLM:
    """A copy trained on recall as `protocol` says.

    The sequences come from a stream of their own, which neither training nor evaluation uses. The model is unchanged.
    """
    adapted = copy.deepcopy(model).float().requires_grad_(True)
    with torch.inference_mode(False), torch.enable_grad():
        trainer = RecallTrainer(adapted, protocol, vocabulary, seed=seed, purpose="adaptation", device=device)
        trainer.run()
        return trainer.release()
