"""The runs of a table of recall: which models are trained on what, and what each is asked."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from ...data_prep.recall import check_room
from ...models import ModelConfig, count_parameters, preset
from ...models.common.errors import UserError
from ...models.common.files import sha256_json
from ...models.common.validation import describe_validation_error
from ...models.presets import matching_width
from ..measurements.recall_cells import RecallCell
from .config import Arm, CellTraining, RecallTable, VocabularySizes
from .training_config import RecallTraining


@dataclass(frozen=True)
class RecallRun:
    """One training of a table, and what is asked after it. Its `id` changes with whatever changes its numbers."""

    arm: str
    config: ModelConfig
    training: RecallTraining
    seed: int
    cells: tuple[RecallCell, ...]
    prefix_mask: bool
    id: str


def runs_of(table: RecallTable) -> list[RecallRun]:
    """Every training of the table: first all arms at the first seed and learning rate.

    Raises:
        UserError: an unknown preset, a field that does not fit, or a training whose sequences have no room for its pairs.
    """
    configs = {name: preset(arm.preset, vocab_size=table.ids.size, **arm.model) for name, arm in table.arms.items()}
    if table.match is not None:
        target = count_parameters(configs[table.match]).non_embedding
        for name, config in configs.items():
            values = config.model_dump()
            values["feedforward"]["width"] = matching_width(config, target)
            configs[name] = ModelConfig.from_dict(values, where=name)
    runs: dict[tuple[str, str], RecallRun] = {}
    for seed in table.seeds:
        for rate in table.learning_rates:
            for name, arm in table.arms.items():
                values = table.training.model_dump() | {"learning_rate": rate} | arm.training
                cells = tuple(cell for cell in table.cells if table.asks(name, cell))
                for asked in [cells] if table.each_cell is None else [(cell,) for cell in cells]:
                    of_cell = {} if table.each_cell is None else _of_cell(table.each_cell, arm, asked[0])
                    try:
                        own = RecallTraining.model_validate(values | of_cell)
                    except ValidationError as error:
                        raise UserError(f"arm {name}: {describe_validation_error(error, RecallTraining)}") from error
                    if own.gate_penalty and not configs[name].has_write_gate:
                        raise UserError(
                            f"arm {name}: gate_penalty needs SKA layers with a write gate, its model has none"
                        )
                    _check_rooms(name, own, table)
                    run_id = _run_id(table, arm, configs[name], own, seed, asked)
                    # Once, where an arm sets a rate of its own; two arms may be the same model.
                    runs.setdefault(
                        (name, run_id), RecallRun(name, configs[name], own, seed, asked, arm.prefix_mask, run_id)
                    )
    return list(runs.values())


def _check_rooms(arm: str, training: RecallTraining, table: RecallTable) -> None:
    """Refuse, before anything runs, a training whose sequences have too few keys or tokens for their pairs."""
    for task, length, pairs in product(training.tasks, training.lengths, training.pairs):
        try:
            check_room(task, length=length, pairs=pairs, vocabulary=table.ids, **training.options.get(task, {}))
        except UserError as error:
            raise UserError(f"arm {arm}: {error}") from None


def is_settled(
    table: RecallTable, run: RecallRun, runs: Iterable[RecallRun], found: Mapping[str, dict[str, Any]]
) -> bool:
    """Whether another learning rate has answered enough of the run's cell (`each_cell.enough`), so that it needs no training.

    Args:
        runs: all of the table.
        found: what was measured (see `measure_together`), by id: names of arms change, and two arms may be the same model.
    """
    if table.each_cell is None or table.each_cell.enough is None:
        return False
    measured = (found.get(other.id) for other in runs if of_one_cell(other, run))
    rows = (row for result in measured if result is not None for row in result["rows"])
    return any(row["correct"] >= table.each_cell.enough * row["queries"] for row in rows)


def of_one_cell(one: RecallRun, other: RecallRun) -> bool:
    """Whether two runs differ in the learning rate alone."""
    return (one.arm, one.seed, one.cells) == (other.arm, other.seed, other.cells)


def _of_cell(each: CellTraining, arm: Arm, cell: RecallCell) -> dict[str, Any]:
    """What the training of one cell has of its own."""
    budget, curriculum, lengths = arm.tokens or each.tokens, each.curriculum, (cell.length,)
    if curriculum is not None:
        gaps = [gap for gap in curriculum.gaps if gap <= cell.gap]
        gaps += [] if gaps and gaps[-1] == cell.gap else [cell.gap]
        lengths = tuple(cell.length - cell.gap + gap for gap in gaps)
    rows = [max(1, each.batch_tokens // length) for length in lengths]
    of_cell = {
        "tasks": (cell.task,),
        "options": {cell.task: cell.options},
        "pairs": (cell.pairs,),
        "lengths": lengths,
        "batch_sequences": rows[-1],
        "steps": max(1, budget // min(n * length for n, length in zip(rows, lengths, strict=True))),
    }
    if curriculum is not None:
        of_cell |= {"batch_tokens": each.batch_tokens, "tokens": budget, "lengthen_at": curriculum.lengthen_at}
    return of_cell


def _run_id(
    table: RecallTable,
    arm: Arm,
    config: ModelConfig,
    training: RecallTraining,
    seed: int,
    cells: tuple[RecallCell, ...],
) -> str:
    parts = [config.identity_dump(exclude={"name"}), training.identity_dump(), seed]
    if table.vocabulary != VocabularySizes():
        parts.append(table.vocabulary.model_dump())
    if arm.prefix_mask:
        parts.append("prefix_mask")
    if table.each_cell is not None:
        return sha256_json([*parts, [asdict(cell) for cell in cells], table.own_questions])[:16]
    later = {"longest": arm.longest, "own_questions": table.own_questions or None, "only": arm.only or None}
    parts.append([grid.model_dump(mode="json") for grid in table.recall])
    parts += [{key: value} for key, value in later.items() if value is not None]
    return sha256_json(parts)[:16]
