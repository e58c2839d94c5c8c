"""Tolerant reading of files that another version, a person or another program wrote: values of the right type are used, all
others left out.

For those who look at runs. Whoever goes on with a run validates its configuration in full (`RunFolder.load_config`).
"""

import json
from typing import Any

from ...models.common.cached_files import read_regular

HUGE = 1e300
MOST_WHOLE = 2**53
MOST_TEXT = 500  # characters of a text
MOST_ROWS = 500  # of a list in a result
MOST_METRICS = 2000
MOST_LEAVES = 2000  # values of a configuration
MOST_VALUE = 6000  # characters of one

ROW_NUMBERS = ("pairs", "length", "queries", "accuracy", "low", "high", "chance")
DECODE_NUMBERS = ("context", "tokens_per_second", "state_bytes", "peak_bytes")
# What is computed from a configuration, by section, and the smallest value that makes sense.
WHOLE_NUMBERS = {
    ("train", "steps"): 1,
    ("train", "batch_tokens"): 1,
    ("run", "checkpoint_every"): 1,
    ("run", "stop_step"): 0,
    ("evaluation", "every"): 1,
    ("evaluation", "every_tokens"): 1,
}
TEXTS = (("model", "preset"), ("data", "name"))

BY_SOURCE, MOST_SOURCES = ("epochs", "loss_by_source"), 100  # fields of a step with a number for each text source
LAST_TIME = 253_402_300_799  # the end of the year 9999, in unix seconds
# Fields that are numbers wherever they stand; another value counts as null.
NUMBERS = frozenset(
    (
        "loss",
        "loss_text",
        "loss_recall",
        "bits_per_byte",
        "grad_norm",
        "gate_mean",
        "learning_rate",
        "tokens",
        "tokens_per_second",
        "mfu",
        "memory_gib",
        "data_stall_seconds",
        "cpu_percent",
        "host_memory_percent",
        "process_gib",
        "gpu_percent",
        "gpu_memory_percent",
        "seconds",
        "stall_seconds",
    )
)


def number(value: Any) -> float | int | None:
    """A finite number below 1e300 in size; None for anything else."""
    return value if type(value) in (int, float) and -HUGE < value < HUGE else None


def whole(value: Any, least: int = 0) -> int | None:
    """A whole number of at least `least`, exact as a float; None for anything else."""
    return value if type(value) is int and least <= value <= MOST_WHOLE else None


def text(value: Any, most: int = MOST_TEXT) -> str:
    """A text or number as text of at most `most` characters; empty for anything else."""
    if not isinstance(value, str | int | float):
        return ""
    shown = str(value) if isinstance(value, str) or number(value) is not None else ""
    shown = shown.encode(errors="replace").decode()  # lone surrogates cannot be sent
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def file_text(path: Any, most: int) -> str:
    """The first `most` characters of a text file, damaged or not; empty if it cannot be read."""
    try:
        return text(read_regular(path).decode(errors="replace"), most)
    except OSError:
        return ""


def config_problem(config: dict[str, Any]) -> str:
    """One line on what is wrong with the configuration values that displays compute with; empty if they fit or are missing."""
    for name in ("model", "data", "train", "run", "evaluation"):
        if not isinstance(config.get(name), dict | None):
            return f"{name} is {_shown(config[name])} and no section"
    for (section, key), least in WHOLE_NUMBERS.items():
        value = (config.get(section) or {}).get(key)
        if value is not None and whole(value, least) is None:
            return f"{section}.{key} is {_shown(value)} and no whole number from {least} on"
    for section, key in TEXTS:
        value = (config.get(section) or {}).get(key)
        if value is not None and not isinstance(value, str):
            return f"{section}.{key} is {_shown(value)} and no text"
    suites = (config.get("evaluation") or {}).get("suites")
    if suites is not None and not (isinstance(suites, list) and all(isinstance(name, str) for name in suites)):
        return f"evaluation.suites is {_shown(suites)} and no list of names"
    return ""


def computed_config(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of a configuration, reduced to valid values of the keys that displays compute with."""
    kept: dict[str, dict[str, Any]] = {"model": {}, "data": {}, "train": {}, "run": {}, "evaluation": {}}
    sections = {name: values for name in kept if isinstance(values := config.get(name), dict)}
    for (section, key), least in WHOLE_NUMBERS.items():
        if (value := whole(sections.get(section, {}).get(key), least)) is not None:
            kept[section][key] = value
    if "evaluation" in sections and sections["evaluation"].get("every_tokens", 0) is None:
        kept["evaluation"]["every_tokens"] = None
    for section, key in TEXTS:
        kept[section][key] = text(sections.get(section, {}).get(key), 80)
    suites = sections.get("evaluation", {}).get("suites")
    names = suites if isinstance(suites, list) else []
    kept["evaluation"]["suites"] = [name for name in names if isinstance(name, str) and name][:40]
    return kept


def flat(value: Any, most: int = MOST_LEAVES) -> dict[str, Any]:
    """A nested mapping as dotted keys with plain values; a list is text. Of more than `most` values the first are kept."""
    leaves: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", value)]
    visits = 0
    while waiting and len(leaves) < most and visits < 20 * most:
        prefix, item = waiting.pop()
        visits += 1
        if isinstance(item, dict):
            waiting += [(f"{prefix}.{key}" if prefix else text(key, 80), item[key]) for key in list(item)[:most][::-1]]
        elif isinstance(item, list):
            leaves[text(prefix, 200)] = _list_text(item)
        else:
            plain = item if isinstance(item, bool | None) else number(item)
            leaves[text(prefix, 200)] = text(item, MOST_VALUE) if plain is None and item is not None else plain
    return leaves


def _list_text(items: list[Any]) -> str:
    """A list as JSON, or a remark that it is too long, since a YAML alias may stand for a million items."""
    waiting, values = list(items[:MOST_LEAVES]), 0
    while waiting and values < MOST_LEAVES:
        item, values = waiting.pop(), values + 1
        if isinstance(item, list | dict):
            waiting += list(item.values() if isinstance(item, dict) else item)[:MOST_LEAVES]
    if waiting:
        return "a list of too many values"
    return text(json.dumps(items, default=str), MOST_VALUE)


def clean_result(result: Any) -> dict[str, Any] | None:
    """The result of an evaluation with its numbers, texts and rows; None without suite, step or metrics."""
    if not isinstance(result, dict):
        return None
    step, suite, metrics = whole(result.get("step")), text(result.get("suite"), 80), result.get("metrics")
    if step is None or not suite or not isinstance(metrics, dict):
        return None
    numbers = ((text(name, 200), number(value)) for name, value in list(metrics.items())[:MOST_METRICS])
    tasks = [_task(row) for row in _mappings(result.get("tasks"))]
    skipped = result.get("skipped")
    return {
        "step": step,
        "suite": suite,
        "tokens": whole(result.get("tokens")),
        "started": number(result.get("started")),
        "ended": number(result.get("ended")),
        "adapted": result.get("adapted") is True,
        "metrics": {name: value for name, value in numbers if value is not None},
        "rows": [row for row in map(_row, _mappings(result.get("rows"))) if row],
        "tasks": [task for task in tasks if task],
        "decode": [{key: number(row.get(key)) for key in DECODE_NUMBERS} for row in _mappings(result.get("decode"))],
        "skipped": {text(key): text(why) for key, why in list(skipped.items())[:MOST_ROWS]}
        if isinstance(skipped, dict)
        else {},
    }


def _row(row: dict[str, Any]) -> dict[str, Any] | None:
    cleaned = {key: number(row.get(key)) for key in ROW_NUMBERS}
    label = text(row.get("label"), 120)
    return cleaned | {"label": label} if label and cleaned["accuracy"] is not None else None


def _task(row: dict[str, Any]) -> dict[str, Any] | None:
    name, values = text(row.get("task"), 120), row.get("values")
    accuracy = {key: number(row.get(key)) for key in ROW_NUMBERS}
    if accuracy["accuracy"] is not None:
        return {"task": name, **accuracy}
    values = values if isinstance(values, dict) else {}
    return {"task": name, "values": {text(key, 80): number(value) for key, value in list(values.items())[:50]}}


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in value[:MOST_ROWS] if isinstance(item, dict)] if isinstance(value, list) else []


def _shown(value: Any) -> str:
    """A value in few characters, whatever it holds: an alias in YAML may stand for a million items."""
    if isinstance(value, list):
        shown = ", ".join(_shown(item) if not isinstance(item, list | dict) else "..." for item in value[:20])
        return f"[{shown}{', ...' if len(value) > 20 else ''}]"
    if isinstance(value, dict):
        return "a section"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(text(value, 60)) if isinstance(value, str) else text(value, 60) or "a number too large"


def clean_event(event: dict[str, Any]) -> dict[str, Any] | None:
    """The event, with null for numeric fields that hold no number; None if its kind, time or step has a wrong type."""
    seconds, step = event.get("time"), event.get("step")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LAST_TIME:
        return None
    if not isinstance(event.get("kind"), str):
        return None
    if (type(step) is not int or not 0 <= step < MOST_WHOLE) and ("step" in event or event["kind"] == "step"):
        if event["kind"] in ("step", "start", "rollback"):
            return None
        event.pop("step", None)
    # The commonest case, a usual float, is decided first: a log has millions of them.
    unusual = [name for name, value in event.items() if not (type(value) is float and -HUGE < value < HUGE)]
    for name in [name for name in unusual if name in NUMBERS and number(event[name]) is None]:
        event[name] = None
    for name in BY_SOURCE:
        if event.get(name) is not None:
            event[name] = _numbers(event[name])
    return event


def _numbers(values: Any) -> dict[str, float] | None:
    items = list(values.items())[:MOST_SOURCES] if isinstance(values, dict) else []
    return {text(key, 80): value for key, value in items if number(value) is not None} or None
