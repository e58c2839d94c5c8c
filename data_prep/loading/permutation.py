"""Random permutations computed entry by entry, so that shuffling needs no memory."""

import numpy as np

from ..recall import seeded_generator

ROUNDS = 4
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Permutation:
    """A bijection of `0 ... size - 1`, chosen by `parts` (see `seeded_generator`).

    A Feistel network over the next even power of two; results outside the range pass it again until they are
    inside (cycle walking: Black & Rogaway, CT-RSA 2002), fewer than four times on average.
    """

    def __init__(self, size: int, *parts: str | int) -> None:
        if size < 1:
            raise ValueError(f"size is {size}: a permutation needs at least one entry")
        self.size = size
        self._half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        self._keys = seeded_generator(*parts).integers(0, 2**64, size=ROUNDS, dtype=np.uint64)

    def __call__(self, index: np.ndarray | int) -> np.ndarray:
        """Images of indices in `0 ... size - 1`, int64 of the same shape."""
        index = np.asarray(index)
        image = self._network(np.atleast_1d(index).astype(np.uint64))
        while (outside := image >= self.size).any():
            image = np.where(outside, self._network(image), image)
        return image.reshape(index.shape).astype(np.int64)

    def _network(self, value: np.ndarray) -> np.ndarray:
        left, right = value >> self._half_bits, value & self._mask
        for key in self._keys:
            mixed = (right ^ key) * _MULTIPLIER  # wraps modulo 2^64, as multiplicative hashing does
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER
            left, right = right, left ^ ((mixed >> np.uint64(32)) & self._mask)
        return (left << self._half_bits) | right
