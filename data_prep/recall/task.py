"""The interface of recall tasks: a generator of sequences, and properties that grids, scores and the command line need."""

from collections.abc import Callable
from dataclasses import dataclass

from .sequences import RecallBatch
from .vocabulary import RecallVocabulary


def the_values(vocabulary: RecallVocabulary) -> range:
    """The values of a vocabulary, which are the possible answers of most tasks."""
    return vocabulary.values


def the_keys(vocabulary: RecallVocabulary) -> range:
    """The keys of a vocabulary, which are the possible answers of tasks that ask for names."""
    return vocabulary.keys


@dataclass(frozen=True)
class Task:
    """One recall task. A file in `tasks/` (or anywhere, named by its path) that sets `TASK = Task(...)` adds it.

    Attributes:
        generate: `generate(cell, vocabulary, generator, **options)` -> `RecallBatch`; options are keyword-only.
        minimum_length: `minimum_length(pairs, queries, **options)` -> tokens of a sequence without any noise.
        choices: the ids among which the answer is chosen. The generator draws answers uniformly from them, so that a guess is
            right once in `len(choices)`, whatever it is.
        num_keys: distinct keys that a sequence needs, `num_keys(pairs, **options)`.
        most_queries: how many questions a sequence can ask at most; None: one a pair.
        labels_per_query: answers that one question has, `labels_per_query(**options)`.
        ceiling: the best possible accuracy, below 1 where a question can have several right answers.
        needs_text: whether these options need text as a haystack, `needs_text(**options)`.
    """

    generate: Callable[..., RecallBatch]
    minimum_length: Callable[..., int]
    choices: Callable[[RecallVocabulary], range] = the_values
    num_keys: Callable[..., int] = lambda pairs, **options: pairs
    most_queries: int | None = None
    labels_per_query: Callable[..., int] = lambda **options: 1
    ceiling: float = 1.0
    needs_text: Callable[..., bool] = lambda **options: False
