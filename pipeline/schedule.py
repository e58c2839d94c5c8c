"""Learning rate, gate penalty and number of tokens read, as pure functions of the step."""

import math
from collections.abc import Sequence

from .config import TrainSection


def learning_rate_at(step: int, train: TrainSection) -> float:
    """Learning rate of update number `step` (from 0): linear warmup, then the schedule to the final fraction at the horizon.

    "cosine" falls all the way; "warmup-stable-decay" (arXiv 2404.06395) stays at the top and falls in its last steps, linearly or
    by one minus the square root of the progress (arXiv 2405.18392); "constant" stays at the top.
    """
    warmup = train.steps_of_warmup
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    height = 1.0
    if train.schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1, train.steps - warmup))
        height = 0.5 * (1 + math.cos(math.pi * progress))
    elif train.schedule == "warmup-stable-decay":
        left = min(1.0, max(0.0, (train.steps - step) / train.steps_of_decay))
        height = left if train.decay_shape == "linear" else 1 - math.sqrt(1 - left)
    floor = train.final_learning_rate_fraction
    return train.learning_rate * (floor + (1 - floor) * height)


def gate_penalty_at(step: int, train: TrainSection) -> float:
    """Gate penalty of update number `step` (from 0), in nats at a gate mean of 1: zero in the first half of the steps, as a model
    must learn to write first, then growing linearly to `gate_penalty` at the last."""
    return train.gate_penalty * max(0.0, 2 * (step + 1) / train.steps - 1)


def tokens_before(step: int, segments: Sequence[tuple[int, TrainSection]]) -> int:
    """Tokens that a run has read before a step.

    Args:
        segments: first step and hyperparameters of each segment of the run, ascending.
    """
    tokens, ends = 0, [begin for begin, _ in segments[1:]]
    for (begin, train), end in zip(segments, [*ends, step], strict=True):
        tokens += train.tokens_before(max(begin, min(end, step))) - train.tokens_before(begin)
    return tokens
