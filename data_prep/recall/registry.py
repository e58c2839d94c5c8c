"""The registry of recall tasks by name. A new task is a file in `tasks/`, or a file anywhere that is named by its path."""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...models.common.errors import UserError
from . import tasks
from .sequences import RecallBatch, TaskCell
from .task import Task
from .vocabulary import RecallVocabulary

TASKS: dict[str, Task] = {
    module.name: importlib.import_module(f"{tasks.__name__}.{module.name}").TASK
    for module in pkgutil.iter_modules(tasks.__path__)
}


def task_of(name: str) -> Task:
    """The task of that name, or of the Python file at that path (`mine.py`), which is then executed.

    Raises:
        UserError: no task of that name (the nearest is named), or a file that does not define one.
    """
    if name.endswith(".py"):
        return _task_of_file(str(Path(name).resolve()))
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0)
        raise UserError(f"no recall task is called {name!r}: did you mean {near[0]!r}? Known: {', '.join(TASKS)}")
    return TASKS[name]


def minimum_length(task: str, *, pairs: int, queries: int | None = None, **options: Any) -> int:
    """The shortest sequence, in tokens, that holds `pairs` pairs and asks `queries` of them (default: as many as it can).

    Raises:
        UserError: unknown task or option, or more queries than the task can ask.
    """
    definition = task_of(task)
    parameters = inspect.signature(definition.minimum_length).parameters.values()
    known = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise UserError(f"recall task {task} has no option {option!r}: it has {', '.join(known) or 'none'}")
    most = num_queries(task, pairs)
    queries = most if queries is None else queries
    if not 1 <= queries <= most:
        raise UserError(f"recall task {task}: {queries} queries of {pairs} pairs: from 1 to {most} can be asked")
    return definition.minimum_length(pairs, queries, **options)


def num_queries(task: str, pairs: int) -> int:
    """The default number of queries in a sequence of `pairs` pairs: as many as it can hold."""
    return min(pairs, task_of(task).most_queries or pairs)


def check_room(
    task: str,
    *,
    length: int,
    pairs: int,
    vocabulary: RecallVocabulary,
    queries: int | None = None,
    **options: Any,
) -> None:
    """Refuse settings with too few keys or tokens for their pairs; the arguments are those of `generate`. A task may refuse more.

    Raises:
        UserError: unknown task or option, too many pairs for the vocabulary, or `length` too short (the message names
            the minimum).
    """
    shortest = minimum_length(task, pairs=pairs, queries=queries, **options)
    keys = task_of(task).num_keys(pairs, **options)
    if keys > vocabulary.num_keys:
        raise UserError(f"recall task {task}: {keys} distinct keys: the vocabulary has {vocabulary.num_keys}")
    if length < shortest:
        raise UserError(f"recall task {task}: length {length} is too short for {pairs} pairs: at least {shortest}")


def generate(
    task: str,
    *,
    sequences: int,
    length: int,
    pairs: int,
    generator: np.random.Generator,
    vocabulary: RecallVocabulary,
    queries: int | None = None,
    text: np.ndarray | None = None,
    **options: Any,
) -> RecallBatch:
    """Generate sequences of one task, each of exactly `length` tokens: noise fills the room that pairs and queries leave.

    Args:
        task: a name in `TASKS`, or the path of a file that defines one.
        sequences: number of sequences, `N`.
        length: tokens in each, `L`.
        pairs: key-value pairs to remember in each (chains, agents, words: what the task counts).
        generator: the only source of randomness; see `seeded_generator`.
        vocabulary: the ids.
        queries: how many of the pairs are queried; as many as the task can if None.
        text: token ids of real text, for haystacks of it.
        options: the task's own, e.g. `decoys` (sysprompt), `overwrites` (tooltrace), `depth`, `haystack` (niah).

    Raises:
        UserError: see `check_room`.
    """
    check_room(task, length=length, pairs=pairs, vocabulary=vocabulary, queries=queries, **options)
    definition = task_of(task)
    cell = TaskCell(sequences, length, pairs, num_queries(task, pairs) if queries is None else queries)
    if definition.needs_text(**options):
        options["text"] = text
    return definition.generate(cell, vocabulary, generator, **options)


@cache
def _task_of_file(path: str) -> Task:
    if not Path(path).is_file():
        raise UserError(
            f"task file {path} does not exist: name a Python file that sets TASK, or one of {', '.join(TASKS)}"
        )
    # A name inside this package, so that the file may import relatively what the tasks of the package do.
    spec = importlib.util.spec_from_file_location(f"{tasks.__name__}.file_{Path(path).stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise UserError(f"task file {path} sets no TASK: end it with `TASK = Task(generate, minimum_length)`")
    return task
