"""The protocol `language`: bits per byte and perplexity on held-out documents, of all sources and of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ...models.common.config import Config
from ..markdown import markdown_table
from ..registry import EvaluationContext, EvaluationProtocol, ProtocolResult, SuiteResults

if TYPE_CHECKING:
    from ...models import EchoLM


class LanguageConfig(Config):
    """Held-out documents up to `tokens` tokens in all, in rows of `sequence_length` tokens; of each source apart too."""

    tokens: int = Field(gt=1)
    """Tokens of held-out text, at most, of all sources together and of each source apart."""
    sequence_length: int = Field(gt=1)
    """Tokens of a row."""


def work(config: LanguageConfig, context: EvaluationContext) -> int:
    """The cost of the protocol: tokens of all texts."""
    return config.tokens * len(_sources(context))


def run(model: EchoLM, config: LanguageConfig, context: EvaluationContext) -> ProtocolResult:
    """Measure a model: metrics `language/NAME` and, where the dataset has several sources, `language/SOURCE/NAME`; see
    `evaluate_language`.

    The rows have the nats and the bytes of each batch of a text, by which two models are compared (`evals/differences.py`).
    """
    from ..measurements.language import evaluate_language

    metrics: dict[str, float] = {}
    rows = []
    for source in _sources(context):
        parts: list[tuple[float, int]] = []
        found = evaluate_language(
            model,
            context.dataset,
            tokens=config.tokens,
            sequence_length=config.sequence_length,
            batch_tokens=context.batch_tokens,
            device=context.device,
            seed=context.seed,
            source=source,
            parts=parts,
        )
        rows.append({"source": source, "nats": [nats for nats, _ in parts], "bytes": [size for _, size in parts]})
        prefix = f"language/{source}/" if source else "language/"
        metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        context.advance(config.tokens)
    return ProtocolResult(rows, metrics)


def summarize(results: SuiteResults) -> list[str]:
    """A table of bits per byte."""
    ending = "/bits_per_byte"
    lines = [
        (name.removesuffix(ending), f"{value:.3f}")
        for name, value in results.last["metrics"].items()
        if name.endswith(ending)
    ]
    return [markdown_table(("held-out text", "bits per byte"), lines)] if lines else []


def _sources(context: EvaluationContext) -> list[str | None]:
    """None, for the text of all sources together, and the name of each source if there are several."""
    names = [source.name for source in context.dataset.manifest.sources]
    return [None, *(names if len(names) > 1 else ())]


PROTOCOL = EvaluationProtocol("language", LanguageConfig, work, run, summarize)
