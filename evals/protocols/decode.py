"""The protocol `decode`: speed and memory of decoding after contexts of given lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ...models.common.config import Config, PositiveInts
from ..markdown import markdown_table
from ..registry import EvaluationContext, EvaluationProtocol, ProtocolResult, SuiteResults

if TYPE_CHECKING:
    from ...models import EchoLM


class DecodeConfig(Config):
    """Decoding `tokens` tokens of `batch` sequences after each context."""

    contexts: PositiveInts
    """Lengths of the context in tokens; each is measured."""
    tokens: int = Field(default=32, gt=0)
    """Tokens that are decoded after each context."""
    batch: int = Field(default=1, gt=0)
    """Sequences decoded together."""


def work(config: DecodeConfig, context: EvaluationContext) -> int:
    """The cost of the protocol in tokens, for progress: a context counts as one batch."""
    return len(config.contexts) * context.batch_tokens


def run(model: EchoLM, config: DecodeConfig, context: EvaluationContext) -> ProtocolResult:
    """Measure a model: a row for each context; see `evaluate_decode`."""
    from ..measurements.decode import evaluate_decode

    rows = evaluate_decode(
        model,
        config.contexts,
        tokens=config.tokens,
        batch=config.batch,
        device=context.device,
        seed=context.seed,
        on_context=lambda: context.advance(context.batch_tokens),
    )
    metrics = {
        f"decode/{name}/context-{row['context']}": row[name]
        for row in rows
        for name in ("tokens_per_second", "state_bytes", "peak_bytes")
        if row[name] is not None
    }
    return ProtocolResult(rows, metrics)


def summarize(results: SuiteResults) -> list[str]:
    """A table with a line for each context."""
    rows = results.last.get("decode")
    header = ("context", "tokens / s", "state", "peak memory")
    return [markdown_table(header, map(_line, rows))] if rows else []


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    from ..figures.style import human_bytes

    peak = "" if row["peak_bytes"] is None else human_bytes(row["peak_bytes"])
    return f"{row['context']:,}", f"{row['tokens_per_second']:,.0f}", human_bytes(row["state_bytes"]), peak


PROTOCOL = EvaluationProtocol("decode", DecodeConfig, work, run, summarize)
