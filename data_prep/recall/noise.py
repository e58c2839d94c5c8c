"""Noise of several kinds, the filler tokens of recall sequences between facts and queries.

Noise is never a key or a value, so none of it changes an answer; what differs is how its tokens follow one another.
"""

from collections.abc import Callable

import numpy as np

from ...models.common.errors import UserError

FEW = 8  # at most so many tokens in a sequence of the kind "few"
LONGEST_PHRASE = 16
RUN_STARTS = 1 / 3  # probability that a token begins a new run


def draw_noise(ids: range, shape: tuple[int, int], generator: np.random.Generator, kind: str = "uniform") -> np.ndarray:
    """Noise tokens of `shape` `[N, L]`, int64, from `ids`.

    Args:
        kind: "uniform" (independent tokens), "zipf" (a few are frequent, most are rare), "runs" (tokens repeat), "phrases" (a
            phrase of 2 to 16 tokens over and over), "few" (1 to 8 tokens), "many" (each sequence is one of these), or "walk"
            (neighbouring ids follow one another), which is in no training mix and stays for noise that was never seen.

    Raises:
        UserError: no such kind.
    """
    if kind == "uniform":
        return generator.integers(ids.start, ids.stop, size=shape)
    if kind == "many":
        which = generator.integers(0, len(MANY), size=shape[0])
        tokens = np.empty(shape, np.int64)
        for i, name in enumerate(MANY):
            rows = which == i
            tokens[rows] = draw_noise(ids, (int(rows.sum()), shape[1]), generator, name)
        return tokens
    if kind not in _KINDS:
        raise UserError(f"noise is {kind!r}: choose one of {', '.join(NOISE_KINDS)}")
    return ids.start + _KINDS[kind](len(ids), shape, generator)


def _zipf(count: int, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Noise with Zipf probabilities 1/rank; the ranks of the tokens are rotated by a random amount in each sequence."""
    cumulated = np.cumsum(1 / np.arange(1, count + 1))
    ranks = np.searchsorted(cumulated, generator.random(shape) * cumulated[-1])
    return (ranks + generator.integers(0, count, size=(shape[0], 1))) % count


def _runs(count: int, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    tokens = generator.integers(0, count, size=shape)
    begins = generator.random(shape) < RUN_STARTS
    since = np.maximum.accumulate(np.where(begins, np.arange(shape[1]), 0), axis=1)
    return np.take_along_axis(tokens, since, axis=1)


def _phrases(count: int, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    phrase = generator.integers(0, count, size=(shape[0], LONGEST_PHRASE))
    period = generator.integers(2, LONGEST_PHRASE, size=(shape[0], 1), endpoint=True)
    return np.take_along_axis(phrase, np.arange(shape[1]) % period, axis=1)


def _few(count: int, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    tokens = generator.integers(0, count, size=(shape[0], FEW))
    kinds = generator.integers(1, FEW, size=(shape[0], 1), endpoint=True)
    return np.take_along_axis(tokens, generator.integers(0, kinds, size=shape), axis=1)


def _walk(count: int, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Noise as a random walk over the ids: steps of -3 to 3 from a random id, modulo the number of ids."""
    steps = generator.integers(-3, 3, size=shape, endpoint=True)
    steps[:, :1] = generator.integers(0, count, size=(shape[0], 1))
    return np.cumsum(steps, axis=1) % count


_KINDS: dict[str, Callable[[int, tuple[int, int], np.random.Generator], np.ndarray]] = {
    "zipf": _zipf,
    "runs": _runs,
    "phrases": _phrases,
    "few": _few,
    "walk": _walk,
}
MANY = ("uniform", "zipf", "runs", "phrases", "few")
NOISE_KINDS = (*MANY, "many", "walk")
