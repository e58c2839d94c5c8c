"""Sizes that the host predicts instead of waiting for the device to count."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Guesses:
    """Numbers that the host needs of data on the device, each guessed from the batch before: one look at all of them behind the
    forward pass, where the host would wait for each in turn while the device runs dry. Keep one as long as the model.

    A guess is right if it is not above its number. One that was not has to be made good by running again without guesses.
    """

    def __init__(self) -> None:
        self._expected: dict[Any, int] = {}
        self._open: list[tuple[Any, Tensor, int, Callable[[int], int]]] = []

    @property
    def made(self) -> bool:
        """Whether any was made that `settle` has not seen. Alike on all ranks that run the same layers on the same shapes."""
        return bool(self._open)

    def number(self, key: Any, value: Tensor, safe: Callable[[int], int]) -> int:
        """A guess of `value`, a number on the device; the first time of a `key`, the number itself.

        Args:
            safe: from a batch's number, what to guess for the next.
        """
        if key not in self._expected:
            number = int(value)
            self._expected[key] = safe(number)
            return number
        self._open.append((key, value, self._expected[key], safe))
        return self._expected[key]

    def settle(self) -> bool:
        """Whether all guesses since the last time were right. Learns the next ones."""
        made, self._open = self._open, []
        numbers = torch.stack([value for _, value, *_ in made]).tolist() if made else []
        for (key, _, _, safe), number in zip(made, numbers, strict=True):
            self._expected[key] = safe(number)
        return all(guess <= number for (_, _, guess, _), number in zip(made, numbers, strict=True))
