"""A table of recall: arms that learn the same tasks at several learning rates and seeds, and are asked the same questions.

Runs that go together train together: on a GPU each is a CUDA graph on a stream of its own (see `recall_training.py`).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import Field, ValidationError

from ..data_prep.recall import RecallBatch, RecallVocabulary
from ..models import ModelConfig, build_model, count_parameters, preset
from ..models.errors import UserError
from ..models.files import sha256_json
from ..models.presets import matching_width
from ..models.validation import describe_validation_error
from .config import Frozen, RecallGrid, RecallTraining
from .recall import RecallCell, count_answers, grid_cells, recall_batches
from .recall_training import RecallTrainer

QUEUED_STEPS = 50  # of each run, before the host waits for the GPU


class Arm(Frozen):
    """A model of the table: a preset, fields of its config that differ, fields of the training that differ."""

    preset: str
    model: dict[str, Any] = Field(default={})
    training: dict[str, Any] = Field(default={})


class RecallTable(Frozen):
    """Attributes:
    vocab_size: of every model; the recall vocabulary starts at id 0.
    match: the arm whose non-embedding parameters the others get, by the width of their feed-forwards; None leaves them.
    learning_rates, seeds: every arm is trained with each of both.
    recall: what is asked of each run; the same sequences for all.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str = ""
    vocab_size: int = Field(default=128, ge=RecallVocabulary().size)
    match: str | None = None
    training: RecallTraining
    learning_rates: Annotated[tuple[float, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    recall: Annotated[tuple[RecallGrid, ...], Field(min_length=1)]
    batch_tokens: int = Field(default=2**19, gt=0)


@dataclass(frozen=True)
class RecallRun:
    """One training of a table. Its `id` changes with whatever changes its numbers."""

    arm: str
    config: ModelConfig
    training: RecallTraining
    seed: int
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
    return table


def runs_of(table: RecallTable) -> list[RecallRun]:
    """Every training of the table: first all arms at the first seed and learning rate.

    Raises:
        UserError: an unknown preset, or a field that does not fit.
    """
    configs = {name: preset(arm.preset, vocab_size=table.vocab_size, **arm.model) for name, arm in table.arms.items()}
    if table.match is not None:
        target = count_parameters(configs[table.match]).non_embedding
        for name, config in configs.items():
            values = config.model_dump()
            values["feedforward"]["width"] = matching_width(config, target)
            configs[name] = ModelConfig.from_dict(values, where=name)
    runs = []
    for seed in table.seeds:
        for rate in table.learning_rates:
            for name, arm in table.arms.items():
                values = table.training.model_dump() | {"learning_rate": rate} | arm.training
                training = RecallTraining.model_validate(values)
                config = configs[name]
                parts = [config.model_dump(mode="json", exclude={"name"}), training.model_dump(mode="json"), seed]
                asked = [grid.model_dump(mode="json") for grid in table.recall]
                runs.append(RecallRun(name, config, training, seed, sha256_json([*parts, asked])[:16]))
    return runs


def measure_together(
    table: RecallTable,
    runs: Sequence[RecallRun],
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Train runs side by side and ask each of them everything.

    Returns:
        For each run `id`, `arm`, `seed`, `learning_rate`, `parameters` (without embeddings), `final_loss` (mean of the last
        tenth of the steps, nats an answer; None if not finite), `losses` (mean of each fiftieth), and `rows`: what was asked (see
        `RecallCell.described`) with the counts of `count_answers`. A run that is not finite answers nothing right and
        has `diverged` set.
    """
    vocabulary = RecallVocabulary()
    started = time.monotonic()
    trainers = []
    for run in runs:
        model = build_model(run.config, seed=run.seed, device=device)
        trainers.append(RecallTrainer(model, run.training, vocabulary, seed=run.seed, device=device))
    steps = max(run.training.steps for run in runs)
    for step in range(steps):
        for run, trainer in zip(runs, trainers, strict=True):
            if step < run.training.steps:
                trainer.advance()
        if (step + 1) % QUEUED_STEPS == 0 or step + 1 == steps:
            for trainer in trainers:
                trainer.synchronize()
            if (step + 1) % (10 * QUEUED_STEPS) == 0:
                on_progress(f"step {step + 1} of {steps}, {time.monotonic() - started:.0f} s")
    results = [_described(run, trainer) for run, trainer in zip(runs, trainers, strict=True)]
    models = [trainer.release() for trainer in trainers]
    for cell, batches in _questions(table, vocabulary):
        for model, result in zip(models, results, strict=True):
            result["rows"].append(cell.described() | _counts(model, cell, vocabulary, batches, result, device))
        on_progress(f"{cell.label} at {cell.length} tokens, {time.monotonic() - started:.0f} s")
    return results


def _questions(table: RecallTable, vocabulary: RecallVocabulary) -> Iterator[tuple[RecallCell, list[RecallBatch]]]:
    """The cells, each with its sequences: made once, asked of every run."""
    for grid in table.recall:
        for cell in grid_cells(grid):
            yield cell, list(recall_batches(cell, vocabulary, batch_tokens=table.batch_tokens, seed=0))


def _described(run: RecallRun, trainer: RecallTrainer) -> dict[str, Any]:
    losses = trainer.losses.float().cpu()
    tenth = max(1, len(losses) // 10)
    return {
        "id": run.id,
        "arm": run.arm,
        "seed": run.seed,
        "learning_rate": run.training.learning_rate,
        "parameters": count_parameters(run.config).non_embedding,
        "final_loss": _rounded(losses[-tenth:]),
        "losses": [_rounded(part) for part in losses.chunk(50)],
        "diverged": not bool(torch.isfinite(losses).all()),
        "rows": [],
    }


def _rounded(losses: torch.Tensor) -> float | None:
    """The mean; None, as JSON knows no NaN, if it is not finite."""
    mean = float(losses.mean())
    return round(mean, 5) if math.isfinite(mean) else None


def _counts(
    model: torch.nn.Module,
    cell: RecallCell,
    vocabulary: RecallVocabulary,
    batches: list[RecallBatch],
    result: dict[str, Any],
    device: torch.device | str,
) -> dict[str, int]:
    try:
        return count_answers(model, cell, vocabulary, batches, device=device)
    except FloatingPointError:
        result["diverged"] = True
        return {"queries": sum(batch.answers.size for batch in batches), "correct": 0, "open_correct": 0}
