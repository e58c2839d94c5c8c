"""Conversion of metrics and parameters to what MLflow accepts: under other names, with other values, or not at all.

One value that MLflow refuses never keeps the others from being sent.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from .errors import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

# Limits of one `log_batch` call, of a name, and of a parameter's value, set by MLflow.
METRICS_A_CALL, PARAMS_A_CALL, KEY_CHARACTERS, PARAM_CHARACTERS = 1000, 100, 250, 6000
REFUSED_CHARACTERS = re.compile(r"[^/\w.\- :]")
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "REQUEST_LIMIT_EXCEEDED")
INT64 = 2**63

Refusal = tuple[str, str]  # a name, and why MLflow does not have its value


def mlflow_key(name: str) -> str:
    """The name under which MLflow shows a metric or parameter: `_` for what it refuses (`acc,none` is `acc_none`).

    Letters, digits and `_ - . : /` and spaces stay. Parts between slashes that are empty or dots become `_`; of a long name the
    first 241 characters stay, with 8 digits of its hash.
    """
    parts = REFUSED_CHARACTERS.sub("_", name).split("/")
    key = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if len(key) <= KEY_CHARACTERS:
        return key
    return f"{key[: KEY_CHARACTERS - 9]}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def mlflow_keys(names: Iterable[str]) -> dict[str, str]:
    """`mlflow_key` of each name; of names that would share one, the later ones by the alphabet get `_2`, `_3` at the end."""
    keys: dict[str, str] = {}
    used: set[str] = set()
    for name in sorted(names, key=lambda name: (mlflow_key(name) != name, name)):
        key, number = mlflow_key(name), 1
        while key in used:
            number += 1
            key = mlflow_key(f"{name}_{number}")
        keys[name] = key
        used.add(key)
    return keys


def plain_name(name: str) -> str:
    """The name of a model: MLflow refuses some signs, and searches with `'` go wrong."""
    return re.sub(r"[/:'\"%.]", "_", name)


def number(value: Any) -> float | None:
    """A value as the finite float that MLflow stores; None if it is none."""
    try:
        result = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def metric(key: str, value: float, milliseconds: int, step: int, **links: str | None) -> "Metric | None":
    """A metric for `log_batch`; None if its time or step is no 64-bit integer.

    Args:
        links: `model_id`, `dataset_name`, `dataset_digest`: what was measured on what.
    """
    from mlflow.entities import Metric

    fits = 0 <= milliseconds < INT64 and -INT64 <= step < INT64
    return Metric(key, value, milliseconds, step, **links) if fits else None


def params(values: dict[str, Any]) -> list["Param"]:
    """Parameters for `log_batch`; long values are cut."""
    from mlflow.entities import Param

    keys = mlflow_keys(values)
    texts = {keys[name]: str(value).encode(errors="replace").decode() for name, value in values.items()}
    return [Param(key, text[:PARAM_CHARACTERS]) for key, text in texts.items()]


def send(
    client: "MlflowClient", run_id: str, kind: Literal["metrics", "params"], items: list["Metric"] | list["Param"]
) -> list[Refusal]:
    """Send metrics or parameters in batches; returns those that MLflow refuses.

    Raises:
        MlflowException: any error that is not about single values.
    """
    refused = []
    for chunk in chunks(items, METRICS_A_CALL if kind == "metrics" else PARAMS_A_CALL):
        refused += _send_chunk(client, run_id, kind, chunk)
    return refused


def _send_chunk(client: "MlflowClient", run_id: str, kind: str, items: list[Any]) -> list[Refusal]:
    """Send a batch; if it is refused, its halves, down to the single values that are."""
    from mlflow.exceptions import MlflowException

    batch: dict[str, Any] = {kind: items}
    try:
        client.log_batch(run_id, **batch)
        return []
    except MlflowException as error:
        if error.error_code not in REFUSALS or client.get_run(run_id).info.lifecycle_stage != "active":
            raise
        if len(items) == 1:
            return [(items[0].key, one_line(error))]
    middle = len(items) // 2
    return _send_chunk(client, run_id, kind, items[:middle]) + _send_chunk(client, run_id, kind, items[middle:])


def chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Split a list into parts of at most `size` items."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
