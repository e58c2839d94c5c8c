"""Suites: named lists of measurements, loaded from YAML and hashed into the identity of their results."""

import difflib
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator

from ..models.common.config import Config
from ..models.common.errors import UserError
from ..models.common.files import sha256_json
from ..models.common.validation import describe_validation_error
from .layout import is_suite_file
from .registry import SUITE_KEYS, all_protocols
from .sweeps.training_config import RecallTraining

SUITE_FOLDER = Path(__file__).parent / "suites"


class Suite(Config):
    """A named list of measurements.

    In a YAML file the protocols stand beside the other keys (`language: {...}`); in Python they are one argument:
    `Suite(name="mine", protocols={"language": LanguageConfig(...)})`.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Name of the suite in results, metrics and reports."""
    description: str = ""
    """What the suite is for; not part of its identity."""
    batch_tokens: int = Field(default=2048, gt=0)
    """Tokens of one forward pass, which bound the memory."""
    adapt: RecallTraining | None = None
    """How a copy of the model is trained on recall before it is evaluated, where its own training held no recall. Only for
    protocols that ask for such a copy: of the package's, `recall`."""
    protocols: dict[str, Any] = Field(default={})
    """The settings of each protocol that is measured, by name. In a YAML file they stand beside the other keys."""

    @field_validator("protocols", mode="before")
    @classmethod
    def _parse_protocols(cls, values: dict[str, Any]) -> dict[str, Any]:
        known = all_protocols()
        if unknown := [name for name in values if name not in known]:
            raise UserError(_describe_unknown_key(unknown[0]))
        parsed = {name: known[name].parse(values[name]) for name in known if values.get(name) is not None}
        # An empty list measures nothing.
        return {name: config for name, config in parsed.items() if config not in ((), [])}

    @classmethod
    def from_yaml(cls, content: Any) -> Self:
        """The suite that the content of a YAML file describes.

        Raises:
            UserError: an unknown key (the nearest is named) or a wrong value.
        """
        values = content
        if isinstance(content, dict):
            values = {key: value for key, value in content.items() if key in SUITE_KEYS}
            # Parsed here too: within pydantic the message would begin with `protocols`, which the file does not have.
            others = {key: value for key, value in content.items() if key not in SUITE_KEYS}
            values["protocols"] = cls._parse_protocols(others)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(describe_validation_error(error, cls)) from error

    @property
    def sha256(self) -> str:
        """Hash of what is measured: of every field except the description, and of the contents of the files it names."""
        # Without defaults, so that a field that is added later leaves the identity of older suites as it was.
        values = self.identity_dump(exclude={"description", "protocols"}, defaults=False)
        known = all_protocols()
        return sha256_json(values | {name: known[name].identify(config) for name, config in self.protocols.items()})

    def with_paths_from(self, folder: Path) -> Self:
        """The suite with absolute paths of the files that it names, found from `folder`.

        Raises:
            UserError: a file is not there.
        """
        known = all_protocols()
        try:
            found = {name: known[name].resolve(config, folder) for name, config in self.protocols.items()}
        except UserError as error:
            raise UserError(f"suite {self.name}: {error}") from error
        return self.model_copy(update={"protocols": found})


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in SUITE_FOLDER.glob("*.yaml"))


def load_suite(name_or_path: str | Path) -> Suite:
    """Load a suite by its name, or from a YAML file of your own.

    Raises:
        UserError: no suite of that name (the nearest ones are named), or a file that does not describe a suite.
    """
    path = Path(name_or_path)
    if not is_suite_file(path):
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
        suite = Suite.from_yaml(content)
    except UserError as error:
        raise UserError(f"suite {path}: {error}") from error
    if not suite.protocols:
        raise UserError(f"suite {path} measures nothing: give it one of {', '.join(all_protocols())}")
    return suite.with_paths_from(path.parent)


def _describe_unknown_key(key: str) -> str:
    valid = [*SUITE_KEYS, *all_protocols()]
    near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
    return f"unknown key {key}: " + (f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}")
