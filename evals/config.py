"""What a suite measures: typed, loaded from YAML, hashed into the identity of its results."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..models.common.errors import UserError
from ..models.common.files import sha256_file, sha256_json
from ..models.common.validation import describe_validation_error

SUITE_FOLDER = Path(__file__).parent / "suites"

PositiveInts = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecallGrid(Frozen):
    """One recall task at every combination of `pairs`, lengths and what `vary` lists, at least `queries` answers each.

    Attributes:
        task: a name, or the path of a Python file that defines one (relative to the suite's file).
        lengths: tokens of a sequence. Or `gaps`: tokens of noise beyond the shortest sequence that holds the pairs.
        options: go to the task's generator as they are (`depth`, `decoys`, ...).
        vary: lists of values of further options; each is an axis of the grid.
        recurrent: read the context in segments with a state of constant size and answer token by token, instead of
            in one parallel pass.
    """

    task: str
    pairs: PositiveInts
    lengths: tuple[Annotated[int, Field(gt=0)], ...] = ()
    gaps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    queries: int = Field(gt=0)
    options: dict[str, Any] = {}
    vary: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    recurrent: bool = False

    @model_validator(mode="after")
    def _one_of_lengths_and_gaps(self) -> Self:
        if bool(self.lengths) == bool(self.gaps):
            raise ValueError(f"{self.task} needs lengths or gaps: one of the two")
        return self


class LanguageProtocol(Frozen):
    """Held-out documents up to `tokens` tokens in all, in rows of `sequence_length` tokens; of each source apart too."""

    tokens: int = Field(gt=1)
    sequence_length: int = Field(gt=1)


class RecallTraining(Frozen):
    """Training on recall alone. The defaults are what a model that never saw recall gets, as a throw-away copy, before it
    is asked.

    Attributes:
        tasks: in equal parts in every batch; options: of each, by its name.
        batch_tokens: as many whole sequences a step as fit, at least one, instead of `batch_sequences`.
        lengths: tokens of a sequence, one after the other step by step; pairs: likewise.
        tokens: the training ends before the step that would take it beyond.
        lengthen_at: a curriculum: training stays at each length until so large a share of its last answers is right, or half of the
            tokens that were left are spent, and goes on with the next. Each length has a warmup and a schedule of its own, and a
            share of `learning_rate` that falls with the square root of the sequences of a step.
        schedule: of the learning rate after the warmup; "cosine" ends at a tenth.
        precision: "bf16" by autocast, weights and AdamW in fp32.
        stop_at: the training ends when so large a share of its last answers is right (of a curriculum: at the last length). Every
            sequence is new, so this says what an evaluation would. `cooldown` steps follow, as far as steps and tokens
            go, in which the rate falls to zero: what full steps are still off by.
        write_cost: nats for write gates that are open at every position, added to the loss: nothing in the first half of the
            steps, as a model must learn to write first, then growing to this at the last; in a curriculum nothing at the
            first length, all of it after. See `SKA.openness`.
    """

    steps: int = Field(default=500, gt=0)
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = ("sysprompt", "tooltrace")
    options: dict[str, dict[str, Any]] = {}
    batch_sequences: int = Field(default=32, gt=0)
    batch_tokens: int | None = Field(default=None, gt=0)
    lengths: PositiveInts = (64,)
    pairs: PositiveInts = (1, 2, 3, 4, 6, 8)
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(default=0.01, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    tokens: int | None = Field(default=None, gt=0)
    lengthen_at: float | None = Field(default=None, gt=0, le=1)
    stop_at: float | None = Field(default=None, gt=0, le=1)
    cooldown: int = Field(default=0, ge=0)
    write_cost: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _check(self):
        if self.write_cost and self.lengthen_at is None:
            for name in ("stop_at", "tokens"):
                if getattr(self, name) is not None:
                    raise ValueError(f"write_cost grows with the steps, which {name} cuts short: give one of the two")
        if self.lengthen_at is not None and self.tokens is None:
            raise ValueError("lengthen_at shares out `tokens`: give it a number of them")
        if self.tokens is not None:
            of_step = [self.batch_at(length) * length for length in self.lengths]
            if self.tokens < max(of_step):
                raise ValueError(f"tokens is {self.tokens:,}: a step takes up to {max(of_step):,}")
            if self.lengthen_at is not None and self.steps < self.tokens // min(of_step):
                raise ValueError(
                    f"{self.tokens:,} tokens may be {self.tokens // min(of_step):,} steps: steps is {self.steps:,}"
                )
        if self.cooldown and self.stop_at is None:
            raise ValueError("cooldown follows where the training stops: it needs `stop_at`")
        return self

    def batch_at(self, length: int) -> int:
        """Sequences of a step."""
        return self.batch_sequences if self.batch_tokens is None else max(1, self.batch_tokens // length)


class HarnessProtocol(Frozen):
    """Tasks of lm-evaluation-harness.

    Attributes:
        local: those of the package on held-out text, and those of the YAML files in `folder`; never need a network.
        hub: names of the harness's own tasks; left out, and said so, where the hub cannot be reached.
        folder: of your own YAML tasks, relative to the suite's file.
        limit: items of a task.
    """

    local: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    folder: str | None = None
    limit: int | None = Field(default=None, gt=0)


class BigbenchProtocol(Frozen):
    """Multiple-choice items of the PyPI package `bigbench`: folders or files below its `benchmark_tasks`."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    limit: int | None = Field(default=None, gt=0)


class DecodeProtocol(Frozen):
    """Decoding `tokens` tokens of `batch` sequences after each context."""

    contexts: PositiveInts
    tokens: int = Field(default=32, gt=0)
    batch: int = Field(default=1, gt=0)


class Suite(Frozen):
    """A named list of measurements. `batch_tokens` bounds the tokens of one forward pass, and with it the memory."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str = ""
    batch_tokens: int = Field(default=2048, gt=0)
    recall: tuple[RecallGrid, ...] = ()
    adapt: RecallTraining | None = None
    language: LanguageProtocol | None = None
    harness: HarnessProtocol | None = None
    bigbench: BigbenchProtocol | None = None
    decode: DecodeProtocol | None = None

    @property
    def sha256(self) -> str:
        """Identity of what is measured: everything but the description, and the contents of the files it names."""
        # Without defaults, so that a field that is added later leaves the identity of older suites as it was.
        values = self.model_dump(mode="json", exclude={"description"}, exclude_defaults=True)
        for grid in values.get("recall", ()):
            if grid["task"].endswith(".py"):
                grid["task"] = [Path(grid["task"]).name, sha256_file(Path(grid["task"]))]
        if self.harness and self.harness.folder:
            files = sorted(path for path in Path(self.harness.folder).rglob("*") if path.is_file())
            values["harness"]["folder"] = [[path.name, sha256_file(path)] for path in files]
        return sha256_json(values)

    @property
    def measures(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.recall or self.language or self.harness or self.bigbench or self.decode)


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in SUITE_FOLDER.glob("*.yaml"))


def load_suite(name_or_path: str | Path) -> Suite:
    """Load a suite by its name, or from a YAML file of your own.

    Raises:
        UserError: no suite of that name (the nearest ones are named), or a file that does not describe a suite.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SUITE_FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        if path.parent != SUITE_FOLDER:
            raise UserError(f"suite file {path} does not exist: name a YAML file or one of {', '.join(suite_names())}")
        near = difflib.get_close_matches(str(name_or_path), suite_names(), cutoff=0.4) or suite_names()
        raise UserError(f"no suite is called {str(name_or_path)!r}: did you mean {' or '.join(near)}?")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"suite {path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        suite = Suite.model_validate(content)
    except ValidationError as error:
        raise UserError(f"suite {path}: {describe_validation_error(error, Suite)}") from error
    if not suite.measures:
        raise UserError(f"suite {path} measures nothing: give it `recall`, `language` or another protocol")
    return _with_paths_from(path.parent, suite)


def _with_paths_from(folder: Path, suite: Suite) -> Suite:
    """The files that a suite names, found from the suite's own folder."""
    recall = tuple(
        grid.model_copy(update={"task": str((folder / grid.task).resolve())}) if grid.task.endswith(".py") else grid
        for grid in suite.recall
    )
    harness = suite.harness
    if harness and harness.folder:
        found = (folder / harness.folder).resolve()
        if not found.is_dir():
            raise UserError(f"suite {suite.name}: harness.folder {found} is not a folder: name one of YAML tasks")
        harness = harness.model_copy(update={"folder": str(found)})
    for grid in recall:
        if grid.task.endswith(".py") and not Path(grid.task).is_file():
            raise UserError(f"suite {suite.name}: task file {grid.task} does not exist")
    return suite.model_copy(update={"recall": recall, "harness": harness})
