"""Temporary copies of models trained briefly on recall tasks, so that checkpoints trained on text alone know the task format.

What it learns is the format; whether it can then recall at other lengths and in other tasks is the architecture's doing and
the pretraining's. The copy is never written anywhere.
"""

import copy

import torch

from ..data_prep.recall import RecallVocabulary
from ..models import EchoLM
from .sweeps.trainer import RecallTrainer
from .sweeps.training_config import RecallTraining


def adapted_copy(
    model: EchoLM,
    vocabulary: RecallVocabulary,
    training: RecallTraining,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> EchoLM:
    """A copy trained on recall as `training` says.

    The sequences come from a stream of their own, which neither training nor evaluation uses. The model is unchanged.
    """
    adapted = copy.deepcopy(model).float().requires_grad_(True)
    with torch.inference_mode(False), torch.enable_grad():
        trainer = RecallTrainer(adapted, training, vocabulary, seed=seed, purpose="adaptation", device=device)
        trainer.run()
        return trainer.release()
