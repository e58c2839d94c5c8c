"""One-line messages about invalid configurations."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from .config import Record
from .errors import UserError


def describe_validation_error(error: ValidationError, schema: type[Record]) -> str:
    """Describe a pydantic error in one line, with the nearest valid key for an unknown one."""
    # pydantic reports a misspelt required key twice, as unknown and as missing; the unknown key is the error to show.
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"]) or "the configuration"
    others = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return f"{where}: {first_line(cause)}{others}"
    if first["type"] == "extra_forbidden":
        *sections, name = first["loc"]
        owners = [
            sections[:depth]
            for depth in range(len(sections))
            if name in _schema_at(schema, sections[:depth]).model_fields
        ]
        if owners:
            owner = ".".join(str(part) for part in owners[-1])
            return f"unknown key {where}: {name} is a key of {owner or 'the whole file'}{others}"
        valid = list(_schema_at(schema, sections).model_fields)
        near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key {where}: {hint}{others}"
    if first["type"] == "missing":
        return f"{where} is missing{others}"
    return f"{where}={first['input']!r} is wrong: {first['msg'].lower()}{others}"


def _schema_at(schema: type[Record], location: Sequence[int | str]) -> type[Record]:
    """The pydantic class that the keys at `location` belong to."""
    for part in location:
        field = schema.model_fields.get(str(part))
        if field is None:
            continue
        nested = _models_in(field.annotation)
        if nested:
            schema = nested[0]
    return schema


def _models_in(annotation: Any) -> list[type[Record]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]


def nearest(name: str, valid: Iterable[str], *, cutoff: float = 0.5) -> str:
    """A hint for an unknown name: the nearest valid one, or all of them."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(valid)}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def first_difference(old: Any, new: Any) -> tuple[str, Any, Any] | None:
    """The first dotted key under which two plain values differ, with both values; None where they are equal."""
    return next(differences(old, new), None)


def differences(old: Any, new: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys under which two plain values differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{field}.{key}".lstrip("."), old.get(key), new.get(key)) for key in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"{field}.{i}", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        if old != new:
            yield field, old, new
        return
    for name, a, b in pairs:
        yield from differences(a, b, name)


def refuse_resolvers(value: Any, origin: str) -> None:
    """Refuse OmegaConf resolvers such as `${oc.env:...}`, which run code; references such as `${train.steps}` are allowed.

    Raises:
        UserError: a string calls a resolver of OmegaConf, whether built in or registered by some library.
    """
    if isinstance(value, dict):
        for item in value.values():
            refuse_resolvers(item, origin)
    elif isinstance(value, list):
        for item in value:
            refuse_resolvers(item, origin)
    elif isinstance(value, str) and re.search(r"\$\{[^}]*:", value):
        raise UserError(f"{origin}: {value!r} calls a resolver, which a configuration may not: write the value itself")
