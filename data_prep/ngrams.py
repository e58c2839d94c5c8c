"""Runs of words as 64-bit numbers: what near-duplicates and overlaps are made of."""

import hashlib
from collections.abc import Sequence

import numpy as np

# Words are what is left between ASCII punctuation and white space, in lower case; other scripts stay as they are.
_TABLE = bytes(ord(chr(i).lower()) if i > 127 or chr(i).isalnum() else ord(" ") for i in range(128))
_TABLE += bytes(range(128, 256))
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, hence invertible modulo 2^64
_MOST_WORDS = 500_000


class _Words(dict[bytes, int]):
    """64-bit hash by word; computed when asked for the first time."""

    def __missing__(self, word: bytes) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
        self[word] = value
        return value


class _Powers:
    """Powers of the multiplier and of its inverse modulo 2^64, as many as were ever asked for."""

    def __init__(self) -> None:
        self._up = self._down = np.ones(1, dtype=np.uint64)

    def __call__(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        if count > len(self._up):
            size = 1 << count.bit_length()
            self._up, self._down = (_powers(base, size) for base in (_MULTIPLIER, pow(_MULTIPLIER, -1, 2**64)))
        return self._up[:count], self._down[:count]


def _powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


_words, _power_tables = _Words(), _Powers()


def split_words(document: bytes) -> list[bytes]:
    """The words of UTF-8 text."""
    return document.translate(_TABLE).split()


def word_runs(documents: Sequence[bytes], length: int) -> tuple[np.ndarray, np.ndarray]:
    """A hash for every run of `length` words of each document, in order.

    Returns:
        The hashes, uint64 `[runs]`, and the number of the document each belongs to, int64 `[runs]`. A document of
        fewer words has none.
    """
    words: list[bytes] = []
    counts = []
    for document in documents:
        before = len(words)
        words += split_words(document)
        counts.append(len(words) - before)
    count = len(words) - length + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    values = np.fromiter(map(_words.__getitem__, words), dtype=np.uint64, count=len(words))
    # A run's hash is a polynomial in the multiplier modulo 2^64; differences of one prefix sum give them all.
    up, down = _power_tables(len(words))
    prefix = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(values * up)])
    runs = (prefix[length:] - prefix[:-length]) * down[:count]
    # A last mixing: without it, runs that differ in their first word alone would differ in few places.
    runs = (runs ^ (runs >> np.uint64(32))) * np.uint64(_MULTIPLIER)
    owners = np.repeat(np.arange(len(counts)), counts)
    inside = owners[:count] == owners[length - 1 :]
    return runs[inside], owners[:count][inside]


class RunIndex:
    """A set of runs to look others up in.

    Args:
        runs: uint64 `[n]`, sorted, without repetition.
    """

    def __init__(self, runs: np.ndarray) -> None:
        self.runs = runs
        # A table of single bits' worth of bytes answers most lookups; a binary search would miss the cache each time.
        self._mask = np.uint64((1 << min(26, max(16, len(runs).bit_length() + 4))) - 1)
        self._table = np.zeros(int(self._mask) + 1, dtype=bool)
        self._table[runs & self._mask] = True

    def find(self, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of `runs` are in the set: their positions in `runs`, and in the set, int64."""
        candidates = np.flatnonzero(self._table[runs & self._mask])
        places = np.searchsorted(self.runs, runs[candidates])
        found = places < len(self.runs)
        found[found] = self.runs[places[found]] == runs[candidates[found]]
        return candidates[found], places[found]
