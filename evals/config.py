"""What a suite measures: typed, loaded from YAML, hashed into the identity of its results."""

import difflib
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from ..models.common.errors import UserError
from ..models.common.files import sha256_file, sha256_json
from ..models.common.validation import describe_validation_error
from .config_base import Frozen, PositiveInts
from .measurements.recall_cells import RecallGrid
from .sweeps.training_config import RecallTraining

SUITE_FOLDER = Path(__file__).parent / "suites"


class LanguageProtocol(Frozen):
    """Held-out documents up to `tokens` tokens in all, in rows of `sequence_length` tokens; of each source apart too."""

    tokens: int = Field(gt=1)
    sequence_length: int = Field(gt=1)


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
