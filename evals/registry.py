"""The evaluation protocols by name. A new one is a file in `protocols/`, or any Python file that calls `register`.

A protocol is measured where a suite has a key of its name. This module is read by everything that loads a suite, so neither it
nor a protocol's file imports torch before something is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError, create_model

from ..models.common.config import Config
from ..models.common.errors import UserError
from ..models.common.validation import describe_validation_error

if TYPE_CHECKING:
    from ..data_prep.loading.dataset import Dataset
    from ..models import EchoLM

# The modules of `protocols/`, each of which sets PROTOCOL. Protocols are measured, and summarized, in this order.
BUILT_IN = ("recall", "language", "harness", "bigbench", "decode")

# The other keys of a suite and of a result file, which no protocol can have as its name.
SUITE_KEYS = ("name", "description", "batch_tokens", "adapt")
RESULT_KEYS = (
    "suite",
    "suite_sha256",
    "model_sha256",
    "dataset_sha256",
    "seed",
    "adapted",
    "step",
    "tokens",
    "started",
    "ended",
    "model",
    "rows",
    "tasks",
    "skipped",
    "metrics",
)


@dataclass(frozen=True)
class EvaluationContext:
    """The data and the settings of a measurement, the same for all protocols of a suite.

    Attributes:
        dataset: the prepared dataset, for the tokenizer and the held-out text.
        batch_tokens: tokens of one forward pass; bounds the memory.
        seed: of everything that is drawn.
        advance: called with the tokens that were processed since the last call, as `EvaluationProtocol.work` counts them.
    """

    dataset: Dataset
    batch_tokens: int
    device: str = "cpu"
    seed: int = 0
    advance: Callable[[int], None] = lambda tokens: None


@dataclass(frozen=True)
class ProtocolResult:
    """The measurements of one protocol on one model.

    Attributes:
        rows: JSON objects of any fields; see `EvaluationProtocol.rows_key`.
        metrics: flat names to numbers (`language/bits_per_byte`), as MLflow shows them.
        skipped: tasks that were left out, and why.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteResults:
    """The results of one suite on the checkpoints of a run, for the page `evals/summary.md`.

    Attributes:
        suite: its name.
        results: the content of the result files, by step.
        folder: of the page; figures go to `folder / "figures"`.
    """

    suite: str
    results: list[dict[str, Any]]
    folder: Path

    @property
    def last(self) -> dict[str, Any]:
        """The result on the last checkpoint."""
        return self.results[-1]


def _unchanged(config: Any, folder: Path) -> Any:
    return config


@dataclass(frozen=True)
class EvaluationProtocol:
    """One way to evaluate a model: its configuration, its cost, its measurement and its part of the summary.

    Attributes:
        name: the protocol's key in a suite.
        config: type of the value under that key: a pydantic class, or a tuple of them.
        work: `(config, context)` to the number of tokens that `run` will report to `context.advance`. Where tokens are not known
            before, count `context.batch_tokens` for each task.
        run: `(model, config, context)` to what was measured.
        summarize: Markdown parts for `evals/summary.md`; none if the results hold nothing of this protocol. Protocols that share
            the function share the parts.
        rows_key: key of the result file that takes the rows; the protocol's name by default.
        resolve: `(config, folder)` to the config with the paths in it made absolute; `folder` is that of the suite's file.
        identity: the config as a JSON value for the hash of a suite; by default its fields that differ from their defaults. A
            protocol whose config names files puts their contents here.
        uses_adapted_copy: the model of `run` is the copy that a suite's `adapt` trains, where there is one.
    """

    name: str
    config: Any
    work: Callable[[Any, EvaluationContext], int]
    run: Callable[[EchoLM, Any, EvaluationContext], ProtocolResult]
    summarize: Callable[[SuiteResults], list[str]]
    rows_key: str = ""
    resolve: Callable[[Any, Path], Any] = _unchanged
    identity: Callable[[Any], Any] | None = None
    uses_adapted_copy: bool = False

    @cached_property
    def _suite_of_one(self) -> type[Config]:
        """A suite of this protocol alone, so that errors name the key and what is below it."""
        fields: dict[str, Any] = {self.name: (self.config, ...)}
        return create_model("SuiteOfOne", __base__=Config, **fields)

    def parse(self, value: Any) -> Any:
        """The config from the value in a suite's YAML file; a config that is one already is returned.

        Raises:
            UserError: an unknown key (the nearest is named) or a wrong value.
        """
        try:
            return getattr(self._suite_of_one.model_validate({self.name: value}), self.name)
        except ValidationError as error:
            raise UserError(describe_validation_error(error, self._suite_of_one)) from error

    def identify(self, config: Any) -> Any:
        """The config as a JSON value for the hash of a suite."""
        return self.identity(config) if self.identity else self.plain(config)

    def plain(self, config: Any) -> Any:
        """The fields of the config that differ from their defaults, as a JSON value.

        A field that is added later with a default leaves the hashes of older suites as they were.
        """
        one = self._suite_of_one.model_construct(**{self.name: config})
        return one.identity_dump(defaults=False)[self.name]


_registered: dict[str, EvaluationProtocol] = {}


def register(protocol: EvaluationProtocol) -> EvaluationProtocol:
    """Add a protocol, for this process; one of the same name that was registered before is replaced.

    Raises:
        UserError: the name is that of a built-in protocol, or of another key of suites or result files.
    """
    if protocol.name in (*BUILT_IN, *SUITE_KEYS, *RESULT_KEYS):
        raise UserError(
            f"an evaluation protocol cannot be called {protocol.name!r}, a name of the package: choose another"
        )
    _registered[protocol.name] = protocol
    return protocol


def all_protocols() -> dict[str, EvaluationProtocol]:
    """All protocols by name: those of the package, then those that were registered."""
    return _built_in() | _registered


@cache
def _built_in() -> dict[str, EvaluationProtocol]:
    return {name: import_module(f"{__package__}.protocols.{name}").PROTOCOL for name in BUILT_IN}
