"""Explanation of a run's configuration: the value, default, origin and meaning of each key."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ...models import ModelConfig, preset
from ...models.common.config import Config
from ...models.common.errors import UserError
from ...models.presets import LATEST_VERSION
from .recipe import load_values, parse_config, with_preset_version

VOCABULARY_BEFORE_DATA = 512  # any size: no shown value depends on it, and the tokenizer determines the real one


@dataclass(frozen=True)
class KeyRow:
    """One key of a configuration.

    Attributes:
        key: dotted, such as `train.steps`.
        value: as YAML has it.
        default: of the class; of a model's keys, of its preset. None as well if the key is required.
        required: there is no default.
        origin: "command line", the recipe, the preset, or "default".
        meaning: the key's description.
    """

    key: str
    value: Any
    default: Any
    required: bool
    origin: str
    meaning: str


def explain_config(recipe: str, overrides: list[str] | None = None) -> list[KeyRow]:
    """Explain all keys of the configuration that a recipe and overrides give, in the order of their classes.

    Raises:
        UserError: as `load_config`.
    """
    written, origin = load_values(recipe)
    values, _ = load_values(recipe, overrides)
    config = parse_config(with_preset_version(values), origin)
    set_here = {override.partition("=")[0] for override in overrides or []}
    sources = {"command line": _nested(set_here), origin: written}
    rows = list(_rows(config, "", sources))
    built = config.model.resolve(VOCABULARY_BEFORE_DATA)
    version = config.model.preset_version
    plain = preset(config.model.preset, preset_version=version, vocab_size=VOCABULARY_BEFORE_DATA)
    position = next(number for number, row in enumerate(rows) if row.key == "model.preset_version") + 1
    rows[position - 1] = replace(
        rows[position - 1], default=LATEST_VERSION
    )  # the default of recipes; that of the class applies to stored files
    rows[position:position] = _rows(built, "model.", sources, plain, f"preset {config.model.preset}")
    return rows


def rows_below(rows: list[KeyRow], key: str) -> list[KeyRow]:
    """The row of a key, or the rows of a section.

    Raises:
        UserError: there is no such key; the nearest is named.
    """
    chosen = [row for row in rows if row.key == key or row.key.startswith(f"{key}.")]
    if not chosen:
        known = [row.key for row in rows]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
        raise UserError(f"there is no key {key!r}" + (f": did you mean {near[0]}?" if near else ""))
    return chosen


def _rows(
    config: Config,
    above: str,
    sources: dict[str, Any],
    defaults: Config | None = None,
    defaults_of: str = "default",
) -> Iterator[KeyRow]:
    """Rows of a section and its subsections; `defaults` has the default values where they are not those of the class."""
    for name, field in type(config).model_fields.items():
        key, value = f"{above}{name}", getattr(config, name)
        if isinstance(config, ModelConfig) and name in ("name", "vocab_size"):
            continue
        inner = getattr(defaults, name, None)
        if isinstance(value, Config):
            yield from _rows(value, f"{key}.", sources, inner, defaults_of)
            continue
        default = _default(field) if defaults is None else inner
        origin = next((source for source, values in sources.items() if _is_set(values, key)), None)
        if origin is None:
            origin = "default" if value == _default(field) else defaults_of
        required = defaults is None and field.is_required()
        yield KeyRow(key, _jsonable(value), _jsonable(default), required, origin, _meaning(field))


def _jsonable(value: Any) -> Any:
    """Convert nested configurations and tuples to plain YAML values; entries of lists keep only the keys that were set."""
    if isinstance(value, Config):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, (list, tuple)):
        return [_jsonable(one) for one in value]
    return value


def _default(field: FieldInfo) -> Any:
    return None if field.default is PydanticUndefined else field.default


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _is_set(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _nested(keys: set[str]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key in keys:
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = True
    return nested
