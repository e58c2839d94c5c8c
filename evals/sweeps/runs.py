"""The runs of a recall sweep: model, training, seed and evaluation cells of each."""

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
from ..measurements.bounded_cache import CacheBudget, CacheGrid
from ..measurements.recall_cells import RecallCell
from .config import Arm, CellTraining, RecallSweep, VocabularySizes
from .training_config import RecallTraining


@dataclass(frozen=True)
class RecallRun:
    """One training of a sweep and the cells it is evaluated on. Its `id` changes with everything that changes its numbers.

    Attributes:
        caches: bounded KV caches with which it is evaluated too, on all cells of the sweep.
    """

    arm: str
    config: ModelConfig
    training: RecallTraining
    seed: int
    cells: tuple[RecallCell, ...]
    prefix_mask: bool
    id: str
    caches: tuple[CacheGrid, ...] = ()

    def budgets_at(self, length: int) -> list[CacheBudget]:
        """The bounded caches with which it is evaluated on sequences of this length."""
        return [budget for grid in self.caches if grid.evaluates(length) for budget in grid.budgets]


def evaluated_tokens(sweep: RecallSweep, run: RecallRun) -> int:
    """The number of tokens that a run is evaluated on."""
    bounded = sum(cell.tokens * len(run.budgets_at(cell.length)) for cell in sweep.cells)
    return sum(cell.tokens for cell in run.cells) + bounded


def runs_of(sweep: RecallSweep) -> list[RecallRun]:
    """Every training of the sweep: first all arms at the first seed and learning rate.

    Raises:
        UserError: an unknown preset, a field that does not fit, or a training whose sequences have no room for its pairs.
    """
    configs = {name: preset(arm.preset, vocab_size=sweep.ids.size, **arm.model) for name, arm in sweep.arms.items()}
    if sweep.match is not None:
        target = count_parameters(configs[sweep.match]).non_embedding
        for name, config in configs.items():
            values = config.model_dump()
            values["feedforward"]["width"] = matching_width(config, target)
            configs[name] = ModelConfig.from_dict(values, where=name)
    for name, arm in sweep.arms.items():
        _check_caches(name, arm, configs[name])
    runs: dict[tuple[str, str], RecallRun] = {}
    for seed in sweep.seeds:
        for rate in sweep.learning_rates:
            for name, arm in sweep.arms.items():
                values = sweep.training.model_dump() | {"learning_rate": rate} | arm.training
                cells = tuple(cell for cell in sweep.cells if sweep.evaluates(name, cell))
                for run_cells in [cells] if sweep.each_cell is None else [(cell,) for cell in cells]:
                    cell_training = (
                        {} if sweep.each_cell is None else _cell_training(sweep.each_cell, arm, run_cells[0])
                    )
                    try:
                        own = RecallTraining.model_validate(values | cell_training)
                    except ValidationError as error:
                        raise UserError(f"arm {name}: {describe_validation_error(error, RecallTraining)}") from error
                    if own.gate_penalty and not configs[name].has_write_gate:
                        raise UserError(
                            f"arm {name}: gate_penalty needs SKA layers with a write gate, its model has none"
                        )
                    _check_rooms(name, own, sweep)
                    run_id = _run_id(sweep, arm, configs[name], own, seed, run_cells)
                    # Each run once: an arm may set one rate of its own, and two arms may be the same model.
                    run = RecallRun(name, configs[name], own, seed, run_cells, arm.prefix_mask, run_id, arm.caches)
                    runs.setdefault((name, run_id), run)
    return list(runs.values())


def _check_caches(name: str, arm: Arm, config: ModelConfig) -> None:
    """Refuse budgets that are too small for the arm's model."""
    for grid in arm.caches:
        for budget in grid.budgets:
            try:
                budget.check(config)
            except UserError as error:
                raise UserError(f"arm {name}: cache {grid.policy}: {error}") from None


def _check_rooms(arm: str, training: RecallTraining, sweep: RecallSweep) -> None:
    """Refuse, before anything runs, a training whose sequences have too few keys or tokens for their pairs."""
    for (task, options), length, pairs in product(training.parts, training.lengths, training.pairs):
        try:
            check_room(task, length=length, pairs=pairs, vocabulary=sweep.ids, **options)
        except UserError as error:
            raise UserError(f"arm {arm}: {error}") from None


def is_settled(
    sweep: RecallSweep, run: RecallRun, runs: Iterable[RecallRun], found: Mapping[str, dict[str, Any]]
) -> bool:
    """Whether another learning rate has answered enough of the run's cell (`each_cell.enough`), so that it needs no training.

    Args:
        runs: all of the sweep.
        found: what was measured (see `measure_together`), by id: names of arms change, and two arms may be the same model.
    """
    if sweep.each_cell is None or sweep.each_cell.enough is None:
        return False
    measured = (found.get(other.id) for other in runs if differ_in_rate_alone(other, run))
    rows = (row for result in measured if result is not None for row in result["rows"])
    return any(row["correct"] >= sweep.each_cell.enough * row["queries"] for row in rows)


def differ_in_rate_alone(one: RecallRun, other: RecallRun) -> bool:
    """Whether two runs differ in the learning rate alone."""
    return (one.arm, one.seed, one.cells) == (other.arm, other.seed, other.cells)


def _cell_training(each: CellTraining, arm: Arm, cell: RecallCell) -> dict[str, Any]:
    """The training settings in which one cell differs from the sweep."""
    budget, curriculum, lengths = arm.tokens or each.tokens, each.curriculum, (cell.length,)
    if curriculum is not None:
        gaps = [gap for gap in curriculum.gaps if gap <= cell.gap]
        gaps += [] if gaps and gaps[-1] == cell.gap else [cell.gap]
        lengths = tuple(cell.length - cell.gap + gap for gap in gaps)
    rows = [max(1, each.batch_tokens // length) for length in lengths]
    cell_training = {
        "tasks": (cell.task,),
        "options": {cell.task: cell.options},
        "pairs": (cell.pairs,),
        "lengths": lengths,
        "batch_sequences": rows[-1],
        "steps": max(1, budget // min(n * length for n, length in zip(rows, lengths, strict=True))),
    }
    if curriculum is not None:
        cell_training |= {"batch_tokens": each.batch_tokens, "tokens": budget, "lengthen_at": curriculum.lengthen_at}
    return cell_training


def _run_id(
    sweep: RecallSweep,
    arm: Arm,
    config: ModelConfig,
    training: RecallTraining,
    seed: int,
    cells: tuple[RecallCell, ...],
) -> str:
    parts = [config.identity_dump(exclude={"name"}), training.identity_dump(), seed]
    if sweep.vocabulary != VocabularySizes():
        parts.append(sweep.vocabulary.identity_dump())
    if arm.prefix_mask:
        parts.append("prefix_mask")
    if sweep.each_cell is not None:
        return sha256_json([*parts, [asdict(cell) for cell in cells], sweep.own_queries])[:16]
    # Hashed under the first names of renamed keys, since ids must not change.
    later = {"longest": arm.longest, "own_questions": sweep.own_queries or None, "only": arm.only or None}
    parts.append([grid.identity_dump() for grid in sweep.recall])
    parts += [{key: value} for key, value in later.items() if value is not None]
    if arm.caches:
        parts.append({"caches": [grid.identity_dump() for grid in arm.caches]})
    return sha256_json(parts)[:16]
