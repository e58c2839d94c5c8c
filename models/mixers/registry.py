"""The kinds of sequence mixers by name, without loading torch.

A mixer is one file: a subclass of `SequenceMixer` (`base.py`) under `@register("name")`. Those of this package are listed in
`BUILT_IN` and loaded when first used; any other file registers its own when it is imported.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..common.errors import UserError
from ..common.validation import nearest

if TYPE_CHECKING:
    from .base import SequenceMixer

# Kind -> the module of this package that registers it.
BUILT_IN = {
    "mamba2": "mamba2",
    "ska": "ska",
    "attention": "attention",
    "gated-deltanet": "gated_deltanet",
    "mesanet": "mesanet",
}

_CLASSES: dict[str, type["SequenceMixer"]] = {}
Class = TypeVar("Class", bound=type)


class SegmentMessage(NamedTuple):
    """Bytes that one rank contributes to a layer's collectives under sequence parallelism, forward and backward
    (`kernels/sequence.py`). On a ring of `world` ranks each rank passes on `world - 1` parts."""

    forward: int
    backward: int


def register(kind: str) -> Callable[[Class], Class]:
    """Class decorator that registers a mixer under the name `kind`, which `layers` of a model config may then use.

    Raises:
        ValueError: another class has the name already.
    """

    def add(mixer: Class) -> Class:
        # Built-in mixers are imported late, so their names are reserved even before they are registered.
        built_in = f"{__package__}.{BUILT_IN[kind]}" if kind in BUILT_IN else None
        if built_in is not None and mixer.__module__ != built_in:
            raise ValueError(f"mixer kind {kind!r} is taken by {built_in}")
        registered = _CLASSES.get(kind, mixer)
        if (registered.__module__, registered.__qualname__) != (mixer.__module__, mixer.__qualname__):
            raise ValueError(f"mixer kind {kind!r} is taken by {registered.__module__}.{registered.__qualname__}")
        mixer.kind = kind
        _CLASSES[kind] = mixer
        return mixer

    return add


def mixer_kinds() -> list[str]:
    """Every kind that `layers` may name."""
    return list(dict.fromkeys([*BUILT_IN, *_CLASSES]))


def check_kind(kind: str) -> None:
    """Refuse an unregistered kind.

    Raises:
        UserError: the kind is unknown; the nearest is named.
    """
    if kind not in BUILT_IN and kind not in _CLASSES:
        raise UserError(f"unknown mixer {kind!r}: {nearest(kind, mixer_kinds())}")


def mixer_class(kind: str) -> type["SequenceMixer"]:
    """The class of a kind; loads its module, and with it torch.

    Raises:
        UserError: the kind is unknown; the nearest is named.
    """
    check_kind(kind)
    if kind not in _CLASSES:
        import_module(f".{BUILT_IN[kind]}", __package__)
    return _CLASSES[kind]
