"""A throw-away copy of a model that learns what recall questions look like: for checkpoints trained on text alone.

What it learns is the format; whether it can then recall at other lengths and in other tasks is the architecture's doing and
the pretraining's. The copy is never written anywhere.
"""

import copy
from pathlib import Path

import torch
import yaml

from ..data_prep.recall import RecallVocabulary, generate, seeded_generator
from ..models import EchoLM, language_model_loss, parameter_groups
from .config import AdaptProtocol

TASKS = ("sysprompt", "tooltrace")


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
    protocol: AdaptProtocol,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> EchoLM:
    """A copy trained for `protocol.steps` steps of AdamW (0.9, 0.95), half SysPrompt, half ToolTrace in every batch.

    The sequences come from a stream of their own, which neither training nor evaluation uses. The model is unchanged.
    """
    adapted = copy.deepcopy(model).float().train().requires_grad_(True)
    optimizer = torch.optim.AdamW(parameter_groups(adapted, 0.01), lr=protocol.learning_rate, betas=(0.9, 0.95))
    warmup = max(1, protocol.steps // 20)
    generator = seeded_generator("adaptation", seed)
    with torch.inference_mode(False), torch.enable_grad():
        for step in range(protocol.steps):
            for group in optimizer.param_groups:
                group["lr"] = protocol.learning_rate * min(1, (step + 1) / warmup)
            pairs = protocol.pairs[step % len(protocol.pairs)]
            halves = [
                generate(
                    task,
                    sequences=-(-protocol.batch_sequences // len(TASKS)),
                    length=protocol.length,
                    pairs=pairs,
                    generator=generator,
                    vocabulary=vocabulary,
                )
                for task in TASKS
            ]
            tokens = torch.cat([torch.from_numpy(half.tokens) for half in halves]).to(device)
            labels = torch.cat([torch.from_numpy(half.labels) for half in halves]).to(device)
            mask = torch.cat([torch.from_numpy(half.loss_mask) for half in halves]).to(device)
            at = mask.bool()
            total, weight = language_model_loss(adapted(tokens, at=at), labels[at], mask[at])
            (total / weight).backward()
            torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return adapted.eval()
