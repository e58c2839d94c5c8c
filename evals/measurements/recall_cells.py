"""Grids of recall tasks and their cells: the evaluations that suites and recall sweeps ask for."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ...data_prep.recall import minimum_length, num_queries, task_of
from ...models.common.config import Config, PositiveInts


class RecallGrid(Config):
    """One recall task at every combination of `pairs`, lengths and what `vary` lists, at least `queries` answers each."""

    task: str
    """Name of a recall task, or the path of a Python file that defines one (relative to the suite's file)."""
    pairs: PositiveInts
    """Numbers of key-value pairs in a sequence; an axis of the grid."""
    lengths: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Lengths of a sequence in tokens; an axis of the grid. Either these or `gaps`."""
    gaps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Instead of `lengths`: tokens of noise beyond the shortest sequence that holds the pairs."""
    queries: int = Field(gt=0)
    """Answers that are scored in each cell, at least."""
    options: dict[str, Any] = Field(default={})
    """Options of the task's generator (`depth`, `decoys`, ...)."""
    vary: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default={})
    """Lists of values of further options, by name; each is an axis of the grid."""
    recurrent: bool = False
    """Read the context in segments with a state of constant size and answer token by token, instead of in one parallel pass."""

    @model_validator(mode="after")
    def _one_of_lengths_and_gaps(self) -> Self:
        if bool(self.lengths) == bool(self.gaps):
            raise ValueError(f"{self.task} needs lengths or gaps: one of the two")
        return self


@dataclass(frozen=True)
class RecallCell:
    """One task with one number of pairs at one length (tokens), at least `queries` answers."""

    task: str
    pairs: int
    length: int
    queries: int
    options: dict[str, Any]
    recurrent: bool = False

    @property
    def name(self) -> str:
        """The task's name: of a file, without folder and ending."""
        return Path(self.task).stem

    @property
    def label(self) -> str:
        """Name in metrics and figures: the task, its pairs and its options, without the length."""
        options = [f"{name}-{_plain(value)}" for name, value in sorted(self.options.items())]
        return "-".join([self.name, str(self.pairs), *options])

    @property
    def gap(self) -> int:
        """The number of tokens beyond the shortest sequence that holds the pairs."""
        return self.length - minimum_length(self.task, pairs=self.pairs, **self.options)

    @property
    def sequences(self) -> int:
        """The number of sequences that together give `queries` answers, each with as many queries as it can hold."""
        per_sequence = num_queries(self.task, self.pairs)
        return math.ceil(self.queries / (per_sequence * task_of(self.task).labels_per_query(**self.options)))

    @property
    def tokens(self) -> int:
        """The number of tokens of all sequences of the cell."""
        return self.sequences * self.length

    def described(self) -> dict[str, Any]:
        """The fields of a result row that identify the cell."""
        names = ("label", "pairs", "length", "options", "recurrent")
        return {"task": self.name, **{name: getattr(self, name) for name in names}}


def cells_of(grids: Iterable[RecallGrid]) -> list[RecallCell]:
    """The cells of all grids, in their order."""
    return [cell for grid in grids for cell in grid_cells(grid)]


def grid_cells(grid: RecallGrid) -> list[RecallCell]:
    """The cells of one grid: pairs, then options, then lengths.

    Raises:
        UserError: unknown task or option.
    """
    cells = []
    for pairs, *values in itertools.product(grid.pairs, *grid.vary.values()):
        options = grid.options | dict(zip(grid.vary, values, strict=True))
        shortest = minimum_length(grid.task, pairs=pairs, **options)
        for length in grid.lengths or [shortest + gap for gap in grid.gaps]:
            cells.append(RecallCell(grid.task, pairs, length, grid.queries, options, grid.recurrent))
    return cells


def _plain(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
