"""A table of recall: arms that learn the same tasks at several learning rates and seeds, and are asked the same questions.

Runs that go together train together: on a GPU each is a CUDA graph on a stream of its own (see `recall_training.py`).
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import Field, ValidationError
from torch import nn

from ..data_prep.recall import RecallVocabulary, task_of
from ..models import ModelConfig, build_model, count_parameters, preset
from ..models.errors import UserError
from ..models.files import sha256_json
from ..models.presets import matching_width
from ..models.validation import describe_validation_error
from .config import Frozen, RecallGrid, RecallTraining
from .prefix_mask import PrefixMasked
from .recall import RecallCell, count_answers, grid_cells, recall_batches
from .recall_training import RecallTrainer, precision_of
from .write_cost import has_write_gate

# Of a training; where they are not used they do not count, so that older results keep their ids.
LATER_FIELDS = ("batch_tokens", "tokens", "precision", "lengthen_at", "stop_at", "cooldown", "write_cost")
QUEUED_STEPS = 50  # of each run, before the host waits for the GPU


class Arm(Frozen):
    """A model of the table: a preset, fields of its config that differ, fields of the training that differ.

    Attributes:
        longest: sequences of more tokens are not asked, where attention would take too long; None asks all.
        only: pairs and gap (tokens beyond the shortest sequence) of the cells that are asked; empty asks all.
        tokens: the budget of each cell where each is learned by itself, instead of the table's.
        prefix_mask: SKA layers write what precedes a row's first answered position (most tasks: the key that is asked) and nothing
            else, in training and in questions.
    """

    preset: str
    model: dict[str, Any] = Field(default={})
    training: dict[str, Any] = Field(default={})
    longest: int | None = Field(default=None, gt=0)
    only: tuple[tuple[int, int], ...] = ()
    tokens: int | None = Field(default=None, gt=0)
    prefix_mask: bool = False


class Curriculum(Frozen):
    """A cell's model begins with shorter gaps than the cell's.

    Attributes:
        gaps: those up to the cell's own, in this order, and then the cell's own unless that was the last. One may come twice:
            where the first does, `write_cost` has a second length to begin at in every cell.
        lengthen_at: so large a share of the last answers right, and the next gap follows (see `RecallTraining`).
    """

    gaps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    lengthen_at: float = Field(gt=0, le=1)


class CellTraining(Frozen):
    """Every cell is learned by a model of its own, on the cell's task and pairs alone, at its length or, in a curriculum, up to it.

    Attributes:
        tokens: at most so many a cell; batch_tokens: of a step, in whole sequences, at least one.
        curriculum: None trains at the cell's length alone.
    """

    tokens: int = Field(gt=0)
    batch_tokens: int = Field(gt=0)
    curriculum: Curriculum | None = None


class VocabularySizes(Frozen):
    """How many keys, values and noise tokens there are; a third of the noise is never shown in training."""

    num_keys: int = Field(default=RecallVocabulary.num_keys, gt=0)
    num_values: int = Field(default=RecallVocabulary.num_values, gt=1)
    num_noise: int = Field(default=RecallVocabulary.num_noise, ge=RecallVocabulary.UNSEEN_NOISE_SHARE)


Percent = Annotated[float, Field(ge=0, le=100)]


class PublishedCell(Frozen):
    """One published accuracy, by arm, of one cell."""

    task: str
    pairs: int = Field(gt=0)
    length: int = Field(gt=0)
    percent: Annotated[dict[str, Percent], Field(min_length=1)]


class Published(Frozen):
    """What others published on the same tasks, for people to compare: it changes no run.

    Attributes:
        source: where it is from.
        means: by arm, the mean accuracy of each task, percent.
    """

    source: str
    means: dict[str, dict[str, Percent]] = Field(default={})
    cells: tuple[PublishedCell, ...] = ()


class RecallTable(Frozen):
    """Attributes:
    vocabulary: the ids that every model knows, and no others.
    match: the arm whose non-embedding parameters the others get, by the width of their feed-forwards; None leaves them.
    learning_rates, seeds: every arm is trained with each of both.
    recall: what is asked of each run; the same sequences for all, or (`own_questions`) for all of one seed.
    mean_of: the tasks whose mean chooses an arm's learning rate and stands for the arm; default all.
    published: numbers of others, set beside ours.
    each_cell: a model a cell instead of one for all; the training's tasks, pairs, lengths, batch and steps follow from it.
    together: runs that train side by side on a GPU, as far as its memory goes.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str = ""
    vocabulary: VocabularySizes = VocabularySizes()
    match: str | None = None
    training: RecallTraining
    learning_rates: Annotated[tuple[float, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    recall: Annotated[tuple[RecallGrid, ...], Field(min_length=1)]
    batch_tokens: int = Field(default=2**19, gt=0)
    own_questions: bool = False
    mean_of: tuple[str, ...] = ()
    published: Published | None = None
    each_cell: CellTraining | None = None
    together: int = Field(default=12, gt=0)

    @property
    def ids(self) -> RecallVocabulary:
        """The vocabulary; its ids begin at 0."""
        return RecallVocabulary(**self.vocabulary.model_dump())

    @property
    def cells(self) -> list[RecallCell]:
        """All cells, in the table's order."""
        return [cell for grid in self.recall for cell in grid_cells(grid)]

    def asks(self, arm: str, cell: RecallCell) -> bool:
        """Whether the arm is asked the cell."""
        longest, only = self.arms[arm].longest, self.arms[arm].only
        fits = longest is None or cell.length <= longest
        return fits and (not only or (cell.pairs, cell.gap) in only)


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


def load_table(path: Path) -> RecallTable:
    """Read a table from YAML.

    Raises:
        UserError: no such file, or one that does not describe a table.
    """
    if not Path(path).is_file():
        raise UserError(f"table {path} does not exist: name a YAML file such as benchmarks/tables/transfer.yaml")
    try:
        table = RecallTable.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"table {path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError(f"table {path}: {describe_validation_error(error, RecallTable)}") from error
    if table.match is not None and table.match not in table.arms:
        raise UserError(f"table {path}: match is {table.match!r}: it names one of {', '.join(table.arms)}")
    published = table.published or Published(source="")
    named = [*table.mean_of, *(task for means in published.means.values() for task in means)]
    named += [cell.task for cell in published.cells]
    tasks = dict.fromkeys(cell.name for cell in table.cells)
    if unknown := [task for task in named if task not in tasks]:
        raise UserError(f"table {path}: {unknown[0]!r} is not asked in it: it asks {', '.join(tasks)}")
    keys = table.vocabulary.num_keys
    for cell in table.cells:
        if (needed := task_of(cell.task).num_keys(cell.pairs, **cell.options)) > keys:
            raise UserError(
                f"table {path}: {cell.label} needs {needed} keys, there are {keys} (`vocabulary: num_keys`)"
            )
    cells = {(cell.pairs, cell.gap) for cell in table.cells}
    for name, arm in table.arms.items():
        if arm.prefix_mask and any(cell.recurrent for cell in table.cells if table.asks(name, cell)):
            raise UserError(
                f"table {path}: arm {name}: `prefix_mask` is for parallel passes, but a cell is `recurrent`"
            )
        if arm.tokens is not None and table.each_cell is None:
            raise UserError(f"table {path}: arm {name}: `tokens` is the budget of a cell: it needs `each_cell`")
        if strange := set(arm.only) - cells:
            pairs, gap = min(strange)
            raise UserError(f"table {path}: arm {name}: no cell has {pairs} pairs and a gap of {gap} (`only`)")
    for task in table.mean_of or tasks:
        if not any(cell.name == task and all(table.asks(arm, cell) for arm in table.arms) for cell in table.cells):
            raise UserError(
                f"table {path}: no cell of {task} is asked of every arm: give `longest` or `only` to fewer arms"
            )
    return table


def runs_of(table: RecallTable) -> list[RecallRun]:
    """Every training of the table: first all arms at the first seed and learning rate.

    Raises:
        UserError: an unknown preset, or a field that does not fit.
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
                    if own.write_cost and not has_write_gate(configs[name]):
                        raise UserError(
                            f"arm {name}: write_cost needs SKA layers with a write gate, its model has none"
                        )
                    run_id = _run_id(table, arm, configs[name], own, seed, asked)
                    # Once, where an arm sets a rate of its own; two arms may be the same model.
                    runs.setdefault(
                        (name, run_id), RecallRun(name, configs[name], own, seed, asked, arm.prefix_mask, run_id)
                    )
    return list(runs.values())


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
    described = training.model_dump(mode="json")
    for name in LATER_FIELDS:
        if described[name] == RecallTraining.model_fields[name].default:
            del described[name]
    parts = [config.model_dump(mode="json", exclude={"name"}), described, seed]
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


def measure_together(
    table: RecallTable,
    runs: Sequence[RecallRun],
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Train runs side by side and ask each of them everything.

    Returns:
        For each run `id`, `arm`, `seed`, `learning_rate`, `parameters` (without embeddings), `tokens` (trained on), `final_loss`
        (mean of the last tenth of the steps, nats an answer; None if not finite), `losses` (mean of each fiftieth), and `rows`:
        what was asked (see `RecallCell.described`) with the counts of `count_answers`. A run that is not finite answers
        nothing right and has `diverged` set.
    """
    vocabulary = table.ids
    started = time.monotonic()
    trainers = []
    for run in runs:
        model: nn.Module = build_model(run.config, seed=run.seed, device=device)
        model = PrefixMasked(model) if run.prefix_mask else model
        trainers.append(RecallTrainer(model, run.training, vocabulary, seed=run.seed, device=device))
    most, step = max(run.training.steps for run in runs), 0
    while at_work := [trainer for trainer in trainers if not trainer.finished]:
        for trainer in at_work:
            trainer.advance()
        step += 1
        if step % QUEUED_STEPS == 0:
            for trainer in at_work:
                trainer.synchronize()
            if step % (10 * QUEUED_STEPS) == 0:
                on_progress(f"step {step} of {most}, {time.monotonic() - started:.0f} s")
    for trainer in trainers:
        trainer.synchronize()
    results = [_described(run, trainer) for run, trainer in zip(runs, trainers, strict=True)]
    models = [trainer.release() for trainer in trainers]
    question_seeds = [run.seed if table.own_questions else 0 for run in runs]
    for cell in table.cells:
        for seed in dict.fromkeys(question_seeds):
            asked = [
                (run, model, result)
                for run, own, model, result in zip(runs, question_seeds, models, results, strict=True)
                if own == seed and cell in run.cells
            ]
            _ask(asked, cell, vocabulary, batch_tokens=table.batch_tokens, seed=seed, device=device)
        on_progress(f"{cell.label} at {cell.length} tokens, {time.monotonic() - started:.0f} s")
    return results


def _ask(
    asked: Sequence[tuple[RecallRun, torch.nn.Module, dict[str, Any]]],
    cell: RecallCell,
    vocabulary: RecallVocabulary,
    *,
    batch_tokens: int,
    seed: int,
    device: torch.device | str,
) -> None:
    """Ask models the same cell and add a row to the result of each. Batch by batch, as all sequences of a long cell
    would not fit in memory."""
    if not asked:
        return
    counts = [Counter() for _ in asked]
    finite = [True] * len(asked)
    for batch in recall_batches(cell, vocabulary, batch_tokens=batch_tokens, seed=seed):
        for i, (run, model, _) in enumerate(asked):
            try:
                with precision_of(run.training, device):
                    counts[i].update(count_answers(model, cell, vocabulary, [batch], device=device))
            except FloatingPointError:
                counts[i]["queries"] += batch.answers.size
                finite[i] = False
    for count, is_finite, (_, _, result) in zip(counts, finite, asked, strict=True):
        names = ("queries", "correct", "open_correct")
        row = {name: count[name] if is_finite or name == "queries" else 0 for name in names}
        result["rows"].append(cell.described() | row)
        result["diverged"] |= not is_finite


def _described(run: RecallRun, trainer: RecallTrainer) -> dict[str, Any]:
    losses = trainer.losses[: trainer.done].float().cpu()
    tenth = max(1, len(losses) // 10)
    return {
        "id": run.id,
        "arm": run.arm,
        "seed": run.seed,
        "learning_rate": run.training.learning_rate,
        "parameters": count_parameters(run.config).non_embedding,
        "tokens": trainer.tokens,
        "final_loss": _rounded(losses[-tenth:]),
        "losses": [_rounded(part) for part in losses.chunk(50)],
        "diverged": not bool(torch.isfinite(losses).all()),
        "rows": [],
    }


def _rounded(losses: torch.Tensor) -> float | None:
    """The mean; None, as JSON knows no NaN, if it is not finite."""
    mean = float(losses.mean())
    return round(mean, 5) if math.isfinite(mean) else None
