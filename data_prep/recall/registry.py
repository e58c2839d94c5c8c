"""The recall tasks by name. A new task is a module with `minimum_length` and `generate`, and a line here."""

import difflib
import inspect
from types import ModuleType
from typing import Any

import numpy as np

from ...models.errors import UserError
from . import mqar, niah, sysprompt, tooltrace
from .sequences import Cell, RecallBatch
from .vocabulary import RecallVocabulary

TASKS: dict[str, ModuleType] = {"sysprompt": sysprompt, "tooltrace": tooltrace, "mqar": mqar, "niah": niah}


def task_module(task: str) -> ModuleType:
    """The module of a task.

    Raises:
        UserError: there is no task of that name; the nearest is named.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1, cutoff=0)
        raise UserError(f"no recall task is called {task!r}: did you mean {near[0]!r}? Known: {', '.join(TASKS)}")
    return TASKS[task]


def minimum_length(task: str, *, pairs: int, queries: int | None = None, **options: Any) -> int:
    """The shortest sequence, in tokens, that holds `pairs` pairs and asks `queries` of them (default: all).

    Raises:
        UserError: unknown task or option, or more queries than pairs.
    """
    module = task_module(task)
    known = [p.name for p in inspect.signature(module.generate).parameters.values() if p.kind == p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise UserError(f"recall task {task} has no option {option!r}: it has {', '.join(known) or 'none'}")
    queries = pairs if queries is None else queries
    if not 1 <= queries <= pairs:
        raise UserError(f"recall task {task}: {queries} queries of {pairs} pairs: each key is asked at most once")
    return module.minimum_length(pairs, queries, **options)


def generate(
    task: str,
    *,
    sequences: int,
    length: int,
    pairs: int,
    generator: np.random.Generator,
    vocabulary: RecallVocabulary,
    queries: int | None = None,
    **options: Any,
) -> RecallBatch:
    """Sequences of one task, each of exactly `length` tokens: noise takes what pairs and queries leave.

    Args:
        task: a name in `TASKS`.
        sequences: number of sequences, `N`.
        length: tokens in each, `L`.
        pairs: key-value pairs to remember in each.
        generator: the only source of randomness; see `seeded_generator`.
        vocabulary: the ids.
        queries: how many of the pairs are asked, `Q`; all of them if None.
        options: the task's own, e.g. `decoys` (sysprompt), `overwrites` (tooltrace), `depth`, `haystack` (niah).

    Raises:
        UserError: unknown task or option, too many pairs for the vocabulary, or `length` too short (the message names
            the minimum).
    """
    shortest = minimum_length(task, pairs=pairs, queries=queries, **options)
    keys = pairs + options.get("decoys", 0)
    if keys > vocabulary.num_keys:
        raise UserError(f"recall task {task}: {keys} distinct keys: the vocabulary has {vocabulary.num_keys}")
    if length < shortest:
        raise UserError(f"recall task {task}: length {length} is too short for {pairs} pairs: at least {shortest}")
    cell = Cell(sequences, length, pairs, pairs if queries is None else queries)
    return task_module(task).generate(cell, vocabulary, generator, **options)
