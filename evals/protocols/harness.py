"""The protocol `harness`: tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ...models.common.config import Config
from ...models.common.errors import UserError
from ...models.common.files import sha256_file
from ..markdown import markdown_table
from ..registry import EvaluationContext, EvaluationProtocol, ProtocolResult, SuiteResults

if TYPE_CHECKING:
    from ...models import EchoLM


class HarnessConfig(Config):
    """Tasks of lm-evaluation-harness."""

    local: tuple[str, ...] = ()
    """Tasks of the package on held-out text, and those of the YAML files in `folder`; they never need a network."""
    hub: tuple[str, ...] = ()
    """Names of the harness's own tasks; left out, and reported so, where the hub cannot be reached."""
    folder: str | None = None
    """Folder of your own YAML tasks, relative to the suite's file."""
    limit: int | None = Field(default=None, gt=0)
    """Items of a task, at most."""


def resolve(config: HarnessConfig, folder: Path) -> HarnessConfig:
    """The config with the absolute path of the folder of tasks.

    Raises:
        UserError: there is no such folder.
    """
    if not config.folder:
        return config
    found = (folder / config.folder).resolve()
    if not found.is_dir():
        raise UserError(f"harness.folder {found} is not a folder: name one of YAML tasks")
    return config.model_copy(update={"folder": str(found)})


def identity(config: HarnessConfig) -> dict[str, Any]:
    """The config with the contents of its folder instead of the path."""
    values = PROTOCOL.plain(config)
    if config.folder:
        files = sorted(path for path in Path(config.folder).rglob("*") if path.is_file())
        values["folder"] = [[path.name, sha256_file(path)] for path in files]
    return values


def work(config: HarnessConfig, context: EvaluationContext) -> int:
    """The cost of the protocol in tokens, for progress: a task counts as one batch."""
    return (len(config.local) + len(config.hub)) * context.batch_tokens


def run(model: EchoLM, config: HarnessConfig, context: EvaluationContext) -> ProtocolResult:
    """Measure a model: a row for each task; see `evaluate_harness`."""
    from ..measurements.harness import evaluate_harness  # needs lm_eval, which training machines do not have

    rows, skipped = evaluate_harness(
        model,
        context.dataset,
        local=config.local,
        hub=config.hub,
        folder=config.folder,
        limit=config.limit,
        batch_tokens=context.batch_tokens,
        device=context.device,
        seed=context.seed,
        on_task=lambda: context.advance(context.batch_tokens),
    )
    metrics = {f"harness/{row['task']}/{name}": value for row in rows for name, value in row["values"].items()}
    return ProtocolResult(rows, metrics, skipped)


def summarize(results: SuiteResults) -> list[str]:
    """A table with a line for each task, and a line for the tasks that were left out."""
    parts = []
    if rows := results.last.get("tasks"):
        parts.append(markdown_table(("task", "queries", "accuracy", "95% interval", "chance"), map(_line, rows)))
    if skipped := results.last.get("skipped"):
        parts.append(f"Left out: {_by_reason(skipped)}.")
    return parts


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    if "accuracy" not in row:
        return row["task"], "", ", ".join(f"{name} {value:.4g}" for name, value in row["values"].items()), "", ""
    chance = "" if row["chance"] is None else f"{row['chance']:.1%}"
    interval = f"{row['low']:.1%} to {row['high']:.1%}"
    return row["task"], f"{row['queries']:,}", f"{row['accuracy']:.1%}", interval, chance


def _by_reason(skipped: dict[str, str]) -> str:
    tasks: dict[str, list[str]] = {}
    for task, reason in skipped.items():
        tasks.setdefault(reason, []).append(task)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in tasks.items())


PROTOCOL = EvaluationProtocol(
    "harness", HarnessConfig, work, run, summarize, rows_key="tasks", resolve=resolve, identity=identity
)
