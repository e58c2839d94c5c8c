"""What a suite measures: typed, loaded from YAML, hashed into the identity of its results."""

import difflib
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..models.errors import UserError
from ..models.files import sha256_json
from ..models.validation import describe_validation_error

SUITE_FOLDER = Path(__file__).parent / "suites"

PositiveInts = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecallGrid(Frozen):
    """One recall task at every combination of `pairs` and `lengths` (tokens), at least `queries` answers each.

    `options` go to the task's generator as they are (`depth`, `decoys`, ...).
    """

    task: str
    pairs: PositiveInts
    lengths: PositiveInts
    queries: int = Field(gt=0)
    options: dict[str, Any] = {}


class LanguageProtocol(Frozen):
    """Held-out documents up to `tokens` tokens in all, in rows of `sequence_length` tokens."""

    tokens: int = Field(gt=1)
    sequence_length: int = Field(gt=1)


class Suite(Frozen):
    """A named list of measurements. `batch_tokens` bounds the tokens of one forward pass, and with it the memory."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    description: str = ""
    batch_tokens: int = Field(default=2048, gt=0)
    recall: tuple[RecallGrid, ...] = ()
    language: LanguageProtocol | None = None

    @property
    def sha256(self) -> str:
        """Identity of what is measured: everything but the description."""
        return sha256_json(self.model_dump(mode="json", exclude={"description"}))


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
    if not suite.recall and suite.language is None:
        raise UserError(f"suite {path} measures nothing: give it `recall` or `language`")
    return suite
