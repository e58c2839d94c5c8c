"""Training and evaluation of the runs of a recall sweep, several at once.

Runs that go together train together: on a GPU each is a CUDA graph on a stream of its own (see `trainer.py`).
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ...data_prep.recall import RecallVocabulary
from ...models import EchoLM, build_model, count_parameters
from ..measurements.prefix_mask import PrefixMasked
from ..measurements.recall import count_correct, recall_batches
from ..measurements.recall_cells import RecallCell
from .config import RecallSweep
from .runs import RecallRun
from .trainer import RecallTrainer, precision_of
from .training_config import RecallTraining

QUEUED_STEPS = 50  # of each run, before the host waits for the GPU


def measure_together(
    sweep: RecallSweep,
    runs: Sequence[RecallRun],
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Train runs concurrently and evaluate each of them on all of its cells.

    Returns:
        For each run `id`, `arm`, `seed`, `learning_rate`, `parameters` (without embeddings), `tokens` (trained on), `final_loss`
        (mean of the last tenth of the steps, nats an answer; None if not finite), `losses` (mean of each fiftieth), and `rows`:
        the cells (see `RecallCell.described`) with the counts of `count_correct`. A run that is not finite answers
        nothing right and has `diverged` set. Where an arm has `caches`, `bounded` has the rows under each of them, with `cache`.
    """
    vocabulary = sweep.ids
    started = time.monotonic()
    trainers: list[RecallTrainer[EchoLM | PrefixMasked]] = []
    for run in runs:
        whole = build_model(run.config, seed=run.seed, device=device)
        model = PrefixMasked(whole) if run.prefix_mask else whole
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
    query_seeds = [run.seed if sweep.own_queries else 0 for run in runs]
    for cell in sweep.cells:
        for seed in dict.fromkeys(query_seeds):
            entrants = [
                entrant
                for run, own, model, result in zip(runs, query_seeds, models, results, strict=True)
                if own == seed
                for entrant in _entrants(run, model, result, cell)
            ]
            for recurrent in (False, True):
                group = [entrant for entrant in entrants if entrant.recurrent == recurrent]
                asked = replace(cell, recurrent=recurrent)
                _evaluate(group, asked, vocabulary, batch_tokens=sweep.batch_tokens, seed=seed, device=device)
        on_progress(f"{cell.label} at {cell.length} tokens, {time.monotonic() - started:.0f} s")
    return results


class _Entrant(NamedTuple):
    """A model that is evaluated on a cell; `rows` gets a row, with `extra` in it, and `result` is marked if it diverges."""

    model: torch.nn.Module
    training: RecallTraining
    recurrent: bool
    rows: list[dict[str, Any]]
    extra: dict[str, Any]
    result: dict[str, Any]


def _entrants(run: RecallRun, model: torch.nn.Module, result: dict[str, Any], cell: RecallCell) -> Iterator[_Entrant]:
    """The run's model, and the same under each bounded KV cache."""
    if cell in run.cells:
        yield _Entrant(model, run.training, cell.recurrent, result["rows"], {}, result)
    for budget in run.budgets_at(cell.length):
        assert isinstance(model, EchoLM)
        extra = {"cache": budget.described()}
        yield _Entrant(budget.bound(model), run.training, True, result["bounded"], extra, result)


def _evaluate(
    group: Sequence[_Entrant],
    cell: RecallCell,
    vocabulary: RecallVocabulary,
    *,
    batch_tokens: int,
    seed: int,
    device: torch.device | str,
) -> None:
    """Evaluate several models on one cell and add a row for each. Batch by batch, as all sequences of a long cell would not fit in
    memory."""
    if not group:
        return
    counts = [Counter() for _ in group]
    finite = [True] * len(group)
    for batch in recall_batches(cell, vocabulary, batch_tokens=batch_tokens, seed=seed):
        for i, entrant in enumerate(group):
            try:
                with precision_of(entrant.training, device):
                    counts[i].update(count_correct(entrant.model, cell, vocabulary, [batch], device=device))
            except FloatingPointError:
                counts[i]["queries"] += batch.answers.size
                finite[i] = False
    for count, is_finite, entrant in zip(counts, finite, group, strict=True):
        names = ("queries", "correct", "open_correct")
        row = {name: count[name] if is_finite or name == "queries" else 0 for name in names}
        entrant.rows.append(cell.described() | entrant.extra | row)
        entrant.result["diverged"] |= not is_finite


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
    } | ({"bounded": []} if run.caches else {})


def _rounded(losses: torch.Tensor) -> float | None:
    """The rounded mean; None if it is not finite, as JSON has no NaN."""
    mean = float(losses.mean())
    return round(mean, 5) if math.isfinite(mean) else None
