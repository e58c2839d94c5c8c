"""Schedules of the learning rate and the gate penalty, as pure functions of the step."""

import math

from .config import TrainSection


def learning_rate_at(step: int, train: TrainSection) -> float:
    """Learning rate of update number `step` (from 0): linear warmup, then the schedule to the final fraction at the horizon.

    "cosine" falls all the way; "warmup-stable-decay" (arXiv 2404.06395) stays at the top and falls linearly in the last
    `decay_fraction` of the steps.
    """
    warmup = train.warmup_steps
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    if train.schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1, train.steps - warmup))
        height = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        decay = max(1, round(train.decay_fraction * train.steps))
        height = min(1.0, max(0.0, (train.steps - step) / decay))
    floor = train.final_learning_rate_fraction
    return train.learning_rate * (floor + (1 - floor) * height)


def gate_penalty_at(step: int, train: TrainSection) -> float:
    """Gate penalty of update number `step` (from 0), in nats at a gate mean of 1: zero in the first half of the steps, as a model
    must learn to write first, then growing linearly to `gate_penalty` at the last."""
    return train.gate_penalty * max(0.0, 2 * (step + 1) / train.steps - 1)
