"""The learning rate as a pure function of the step."""

import math

from .config import TrainSection


def learning_rate_at(step: int, train: TrainSection) -> float:
    """Learning rate of update number `step` (from 0): linear warmup, then a cosine to the final fraction at the horizon."""
    warmup = train.warmup_steps
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, train.steps - warmup))
    floor = train.final_learning_rate_fraction
    return train.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
