"""The scores: accuracy with its interval, bits per byte, perplexity, and the baselines that need no model."""

import gzip
import math
from typing import Any

import numpy as np


def accuracy(correct: int, queries: int, *, chance: float) -> dict[str, Any]:
    """Share of right answers with its 95% Wilson score interval (Wilson 1927).

    Returns:
        `queries`, `correct`, `accuracy`, `low` and `high` (the interval), `chance` (what guessing gives).

    Raises:
        ValueError: no query, or more right answers than queries.
    """
    if not 0 <= correct <= queries or queries == 0:
        raise ValueError(f"{correct} right answers out of {queries} queries is not a share")
    # Imported here, as it imports pandas: over a second at the start of every process, training included.
    from statsmodels.stats.proportion import proportion_confint

    # Any: it is declared to return pandas objects too, which it does for pandas arguments alone.
    interval: Any = proportion_confint(correct, queries, alpha=0.05, method="wilson")
    low, high = interval
    return {
        "queries": queries,
        "correct": correct,
        "accuracy": correct / queries,
        # At 0% and 100% the formula leaves a rounding error.
        "low": float(low) if correct else 0.0,
        "high": float(high) if correct < queries else 1.0,
        "chance": chance,
    }


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Bits that a model spends on each byte of text. Independent of the tokenizer, unlike perplexity."""
    return nats / math.log(2) / text_bytes


def perplexity(nats: float, tokens: int) -> float:
    """exp of the mean loss per token. Infinite where the exponential overflows."""
    try:
        return math.exp(nats / tokens)
    except OverflowError:
        return math.inf


def unigram_nats(train_counts: np.ndarray, labels: np.ndarray) -> float:
    """Loss of the labels, in nats, under a unigram model: token frequencies of the training split with add-one smoothing.

    Args:
        train_counts: int `[V]`, occurrences of each token in the training split.
        labels: int `[N]`, the tokens that the model is scored on.
    """
    smoothed = train_counts + 1.0
    log_probability = np.log(smoothed) - np.log(smoothed.sum())
    return float(-log_probability[labels].sum())


def gzip_bits_per_byte(text: bytes) -> float:
    """Bits per byte of `gzip -9` on the text."""
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text)
