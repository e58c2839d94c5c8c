"""Distinct words for the tasks `cwe` and `fwe`, which ask for the most frequent words of a list."""

import numpy as np

from ...models.common.errors import UserError
from .sequences import TaskCell
from .vocabulary import RecallVocabulary


def draw_words(
    cell: TaskCell, words: int, answers: int, vocabulary: RecallVocabulary, generator: np.random.Generator
) -> np.ndarray:
    """Draw distinct words `[N, words]`: the first `answers` are keys; the others are keys and, where these do not suffice,
    noise.

    Raises:
        UserError: the vocabulary has fewer words.
    """
    noise = vocabulary.seen_noise
    most = vocabulary.num_keys + len(noise)
    if words > most:
        raise UserError(f"{words} different words: the vocabulary has {most} keys and noise tokens")
    keys = vocabulary.draw_distinct_keys((cell.sequences, min(words, vocabulary.num_keys)), generator)
    others = vocabulary.draw_distinct(noise, (cell.sequences, words - keys.shape[1]), generator)
    rest = generator.permuted(np.concatenate([keys[:, answers:], others], axis=1), axis=1)
    return np.concatenate([keys[:, :answers], rest], axis=1)
