"""Hashes of word n-grams ("runs"), for the detection of near-duplicates and overlaps."""

import hashlib
from collections.abc import Sequence

import numpy as np

# Words are separated by ASCII punctuation and white space, and lower-cased in ASCII; other scripts stay as they are.
_TABLE = bytes(ord(chr(i).lower()) if i > 127 or chr(i).isalnum() else ord(" ") for i in range(128))
_TABLE += bytes(range(128, 256))
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, hence invertible modulo 2^64
_BLOCK = 8  # bytes of a word that are hashed together
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(_BLOCK + 1)], dtype=np.uint64)  # the first `count` bytes
_LONGEST = 1024  # bytes; the few longer words are hashed one by one


class _Powers:
    """Cached powers of the hash's multiplier and of its inverse modulo 2^64."""

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


_power_tables = _Powers()


def split_words(document: bytes) -> list[bytes]:
    """Split UTF-8 text into words."""
    return document.translate(_TABLE).split()


def word_runs(
    documents: Sequence[bytes], length: int, *, whole_if_shorter: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `length` words of each document, in order.

    Args:
        documents: UTF-8.
        length: words of a run.
        whole_if_shorter: a document of one to `length - 1` words is one run; else it has none.

    Returns:
        The hashes, uint64 `[runs]`, and the number of the document each belongs to, int64 `[runs]`.
    """
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    starts, values = _word_hashes(b" ".join(documents).translate(_TABLE))
    count = max(0, len(values) - length + 1)
    if not len(values):
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    # A run's hash is a polynomial in the multiplier modulo 2^64, computed for all runs as differences of one prefix sum.
    up, down = _power_tables(len(values))
    prefix = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(values * up)])
    owners = np.searchsorted(np.cumsum(lengths + 1), starts, side="right")
    inside = owners[:count] == owners[length - 1 :] if count else np.empty(0, bool)
    runs = _mix_bits((prefix[length:] - prefix[:-length]) * down[:count]) if count else np.empty(0, np.uint64)
    runs, run_owners = runs[inside], owners[:count][inside]
    if not whole_if_shorter:
        return runs, run_owners
    numbers, first, words = np.unique(owners, return_index=True, return_counts=True)
    numbers, first, words = (part[words < length] for part in (numbers, first, words))
    short = _mix_bits((prefix[first + words] - prefix[first]) * down[first] + words.astype(np.uint64))
    order = np.argsort(np.concatenate([run_owners, numbers]), kind="stable")
    return np.concatenate([runs, short])[order], np.concatenate([run_owners, numbers])[order]


def _word_hashes(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Start positions of the words of a text, int64 `[n]`, and their 64-bit hashes, uint64 `[n]`; words of up to eight bytes
    never collide, longer ones practically never.

    Args:
        text: with words separated by spaces.
    """
    text = b" " + text + b" " * _BLOCK
    inside = np.frombuffer(text, dtype=np.uint8) != ord(" ")
    borders = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = borders[::2], borders[1::2]
    lengths = ends - starts
    blocks = np.ndarray(len(text) - _BLOCK + 1, dtype="<u8", buffer=text, strides=(1,))  # from every position on
    hashes = blocks[starts] & _MASKS[np.minimum(lengths, _BLOCK)]
    for offset in range(_BLOCK, _LONGEST, _BLOCK):
        longer = np.flatnonzero(lengths > offset)
        if not len(longer):
            break
        block = blocks[starts[longer] + offset] & _MASKS[np.minimum(lengths[longer] - offset, _BLOCK)]
        hashes[longer] = _mix_bits(hashes[longer]) + block
    for word in np.flatnonzero(lengths > _LONGEST):
        digest = hashlib.blake2b(text[starts[word] : ends[word]], digest_size=8).digest()
        hashes[word] = int.from_bytes(digest, "little")
    return starts - 1, _mix_bits(hashes)


def _mix_bits(values: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit numbers, by a permutation: numbers that differ in few bits then differ in many."""
    values = (values ^ (values >> np.uint64(32))) * np.uint64(_MULTIPLIER)
    return values ^ (values >> np.uint64(29))


class RunIndex:
    """A set of runs for fast membership tests.

    Args:
        runs: uint64 `[n]`, sorted, without repetition.
    """

    def __init__(self, runs: np.ndarray) -> None:
        self.runs = runs
        # A small table answers most lookups; a binary search would miss the cache each time.
        self._mask = np.uint64((1 << min(26, max(16, len(runs).bit_length() + 4))) - 1)
        self._table = np.zeros(int(self._mask) + 1, dtype=bool)
        self._table[runs & self._mask] = True

    def find(self, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the members of the set among `runs`: their positions in `runs`, and in the set, int64."""
        candidates = np.flatnonzero(self._table[runs & self._mask])
        places = np.searchsorted(self.runs, runs[candidates])
        is_member = places < len(self.runs)
        is_member[is_member] = self.runs[places[is_member]] == runs[candidates[is_member]]
        return candidates[is_member], places[is_member]
