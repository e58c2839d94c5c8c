"""The protocol `bigbench`: accuracy on multiple-choice items of the PyPI package `bigbench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ...models.common.config import Config
from ..layout import bigbench_folder
from ..registry import EvaluationContext, EvaluationProtocol, ProtocolResult
from .harness import summarize

if TYPE_CHECKING:
    from ...models import EchoLM


class BigbenchConfig(Config):
    """Multiple-choice items of the PyPI package `bigbench`: folders or files below its `benchmark_tasks`."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Folders or files below the package's `benchmark_tasks`."""
    limit: int | None = Field(default=None, gt=0)
    """Items of a task, at most."""


def work(config: BigbenchConfig, context: EvaluationContext) -> int:
    """The cost of the protocol in tokens, for progress: a task counts as one batch."""
    return len(config.tasks) * context.batch_tokens


def run(model: EchoLM, config: BigbenchConfig, context: EvaluationContext) -> ProtocolResult:
    """Measure a model: a row for each task; see `evaluate_bigbench`."""
    from ..measurements.bigbench import evaluate_bigbench

    rows = evaluate_bigbench(
        model,
        context.dataset.tokenizer(),
        config.tasks,
        bigbench_folder(context.dataset.folder),
        limit=config.limit,
        batch_tokens=context.batch_tokens,
        device=context.device,
        on_task=lambda: context.advance(context.batch_tokens),
    )
    return ProtocolResult(rows, {f"bigbench/{row['task']}": row["accuracy"] for row in rows})


# The rows have the fields of the harness's, and are summarized in one table with them.
PROTOCOL = EvaluationProtocol("bigbench", BigbenchConfig, work, run, summarize, rows_key="tasks")
