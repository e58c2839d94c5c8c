"""Writes `config.md`, the reference of every configuration key, from the classes: `python docs/reference/generate.py [FILE]`."""

import json
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from echo_lm.evals.config import Suite
from echo_lm.evals.registry import EvaluationProtocol, all_protocols
from echo_lm.evals.sweeps.config import RecallSweep
from echo_lm.models import ModelConfig
from echo_lm.models.common.config import Config
from echo_lm.models.common.files import write_text
from echo_lm.models.config import WITH_SECTION
from echo_lm.models.mixers.registry import BUILT_IN, mixer_class
from echo_lm.orchestration.preparation.data_recipe import DataRecipe
from echo_lm.orchestration.studies.config import StudyConfig
from echo_lm.pipeline.config import ModelSection, RunConfig

INTRODUCTION = """# Configuration

Every key of every YAML file that Echo-LM reads. A key that does not exist is refused with the nearest one that does. On the
command line a key of a recipe is set by its dotted name, such as `train.steps=200`. This page is written by `make reference`
from the classes themselves; a test checks that it is current.

| file | read by | begins at |
|---|---|---|
"""
# What a file is called on the page, its class, and which command reads it.
FILES: tuple[tuple[str, type[Config], str], ...] = (
    ("recipe", RunConfig, "`echo-lm run`, `train`, `prepare`; tour: [recipes](../guides/recipes.md)"),
    ("recipe of data alone", DataRecipe, "`echo-lm prepare`; tour: [data](../guides/data.md)"),
    (
        "model",
        ModelConfig,
        "`model` of a recipe; `config.json` beside the weights; tour: [models](../design/models.md)",
    ),
    ("suite", Suite, "`echo-lm eval --suite`; tour: [evaluation](../guides/evaluation.md)"),
    ("recall sweep", RecallSweep, "`echo-lm sweep`; tour: [evaluation](../guides/evaluation.md)"),
    ("study", StudyConfig, "`echo-lm study`; tour: [studies](../guides/studies.md)"),
)
PLAIN_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "any value", Path: "path"}
COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Reference:
    """The page, section by section; a class that stands in several files is described in the first one.

    Attributes:
        title_of: the heading of each class.
    """

    def __init__(self) -> None:
        self.title_of: dict[type[Config], str] = {}
        self._sections: list[str] = []

    def page(self) -> str:
        """The whole page, as Markdown."""
        for name, config, _ in FILES:
            self._add(config, "", name)
        rows = [f"| {name} | {reader} | {self._link(config, name)} |" for name, config, reader in FILES]
        return INTRODUCTION + "\n".join(rows) + "\n\n" + "\n\n".join(self._sections) + "\n"

    def _add(self, config: type[Config], key: str, file: str) -> None:
        """Add the section of a class that stands at `key` of a file, then those of the classes in its fields."""
        if config in self.title_of:
            return
        article = f"{'an' if file[0] in 'aeiou' else 'a'} {file}"
        self.title_of[config] = f"`{key}` of {article}" if key else article.capitalize()
        level = "###" if key else "##"
        position = len(self._sections)
        self._sections.append("")
        rows = []
        for name, field in config.model_fields.items():
            for one in configs_in(field.annotation):
                self._add(one, f"{key}.{name}" if key else name, file)
            if (config, name) != (Suite, "protocols"):
                rows.append(self._row(name, field))
        for kind in [kind for kind in BUILT_IN if kind not in WITH_SECTION] if config is ModelConfig else ():
            self._add(mixer_class(kind).options, f"mixers.{kind}", file)
        # In the file the protocols stand beside the other keys.
        for protocol in all_protocols().values() if config is Suite else ():
            for one in configs_in(protocol.config):
                self._add(one, protocol.name, file)
            rows.append(self._protocol_row(protocol))
        if config is ModelSection:
            rows.append("| any key of [a model](#a-model) | | | Overrides that field of the preset. |")
        table = "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])
        about = " ".join((config.__doc__ or "").split("\n\n")[0].split())
        self._sections[position] = f"{level} {self.title_of[config]}\n\n{about}\n\n{table}"

    def _row(self, name: str, field: FieldInfo) -> str:
        meaning = " ".join((field.description or "").split())
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        return f"| `{name}` | {self._type(annotation)} | {default_of(field)} | {meaning} |".replace("\\", "\\\\")

    def _protocol_row(self, protocol: EvaluationProtocol) -> str:
        about = (sys.modules[protocol.work.__module__].__doc__ or "").split("\n")[0].partition(": ")[2]
        return f"| `{protocol.name}` | {self._type(protocol.config)} | not measured | {about[:1].upper()}{about[1:]} |"

    def _type(self, annotation: Any) -> str:
        """An annotation in plain words, with its constraints."""
        if get_origin(annotation) is Annotated:
            inner, *metadata = get_args(annotation)
            optional = type(None) in get_args(inner)
            if optional:
                inner = Union[tuple(one for one in get_args(inner) if one is not type(None))]  # noqa: UP007 (of a tuple)
            words = self._type(inner) + constraints(metadata)
            return f"{words}, or null" if optional else words
        if annotation in self.title_of:
            return self._link(annotation, "section")
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            return ", ".join(f"`{value}`" for value in arguments)
        if origin in (Union, types.UnionType):
            return ", or ".join("null" if one is type(None) else self._type(one) for one in arguments)
        if origin is tuple:
            count = "" if ... in arguments else f"{len(arguments)} of "
            return f"list of {count}{in_brackets(self._type(arguments[0]))}"
        if origin is dict:
            return f"mapping of names to {in_brackets(self._type(arguments[1]))}"
        return PLAIN_TYPES[annotation]

    def _link(self, config: type[Config], text: str) -> str:
        return f"[{text}](#{slug(self.title_of[config])})"


def configs_in(annotation: Any) -> list[type[Config]]:
    """The configuration classes in an annotation, in order."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [config for inner in get_args(annotation) for config in configs_in(inner)]


def constraints(metadata: Iterable[Any]) -> str:
    """Constraints in words, to follow a type."""
    parts, comparisons = [], []
    for one in metadata:
        if isinstance(one, FieldInfo):
            parts.append(constraints(one.metadata))
            continue
        comparisons += [
            f"{sign} {value:g}" for name, sign in COMPARISONS.items() if (value := getattr(one, name, None)) is not None
        ]
        if (multiple := getattr(one, "multiple_of", None)) is not None:
            comparisons.append(f"a multiple of {multiple}")
        if (least := getattr(one, "min_length", None)) is not None:
            parts.append(f"; at least {least} item{'s' if least > 1 else ''}")
        if getattr(one, "pattern", None):
            parts.append(f" that matches `{one.pattern}`")
    return (" " + " and ".join(comparisons) if comparisons else "") + "".join(parts)


def in_brackets(words: str) -> str:
    """Words of several parts in round brackets, so that what follows them is not taken for a part."""
    return f"({words})" if any(separator in words for separator in (",", ";", " or ")) else words


def default_of(field: FieldInfo) -> str:
    """The default value as YAML would state it."""
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, Config):
        changed = field.default.model_dump(mode="json", exclude_unset=True)
        return f"`{json.dumps(changed)}`" if changed else "its defaults"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value)}`"


def slug(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


if __name__ == "__main__":
    write_text(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("config.md"), Reference().page())
