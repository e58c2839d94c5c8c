"""Sizes that the host predicts from earlier batches instead of waiting for the device to compute them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class PredictedSizes:
    """Predictions of numbers that the host needs to know of data on the device, each made from the previous batch.

    Waiting for each number in turn would leave the device idle; `verify` waits once, after the forward pass, for all of them.
    Keep one object as long as the model. A prediction is right if it is not above its number; after a wrong one the pass must
    be run again without predictions.
    """

    def __init__(self) -> None:
        self._expected: dict[Any, int] = {}
        self._pending: list[tuple[Any, Tensor, int, Callable[[int], int]]] = []

    @property
    def pending(self) -> bool:
        """Whether any prediction is not verified yet. Alike on all ranks that run the same layers on the same shapes."""
        return bool(self._pending)

    def number(self, key: Any, value: Tensor, safe: Callable[[int], int]) -> int:
        """A prediction of `value`, a number on the device; the number itself at the first call with a `key`.

        Args:
            safe: from a batch's number, what to predict for the next.
        """
        if key not in self._expected:
            number = int(value)
            self._expected[key] = safe(number)
            return number
        self._pending.append((key, value, self._expected[key], safe))
        return self._expected[key]

    def verify(self) -> bool:
        """Whether all predictions since the last call were right; the next ones follow from their numbers."""
        pending, self._pending = self._pending, []
        numbers = torch.stack([value for _, value, *_ in pending]).tolist() if pending else []
        for (key, _, _, safe), number in zip(pending, numbers, strict=True):
            self._expected[key] = safe(number)
        return all(predicted <= number for (_, _, predicted, _), number in zip(pending, numbers, strict=True))
