"""Formatting of numbers, times and events for the pages; a missing value is a dash."""

from datetime import UTC, datetime
from typing import Any, TypeGuard
from urllib.parse import quote

DASH = "–"
LARGE = 1e15  # from here on numbers are written with an exponent, so that no number widens a page
LONGEST = 1e10  # seconds, three centuries
LAST_TIME = 253_402_300_800  # the year 10000, in unix seconds


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and -1e300 < value < 1e300


def _any_number(value: Any, form: str) -> str:
    """A number in a format, a large one with an exponent; a dash for what is no finite number."""
    if not _is_number(value):
        return DASH
    return format(value, form if abs(value) < LARGE else ".3g")


def count(value: float | None) -> str:
    """A whole number with separators: `12,345`."""
    return _any_number(value, ",.0f")


def decimals(value: float | None, places: int = 3) -> str:
    """A number with a fixed number of decimal places: `2.065`."""
    return _any_number(value, f".{places}f")


def significant(value: float | None) -> str:
    """A number with three significant digits: `0.00193`, `1.2e-05`."""
    return _any_number(value, ".3g")


def percent(value: float | None) -> str:
    """A share as a percentage: `97.4%`."""
    return _any_number(value, ".1%")


def duration(seconds: float | None) -> str:
    """A duration: `42 s`, `5 min`, `3 h 20 min`, `2 d 4 h`."""
    if not _is_number(seconds) or abs(seconds) > LONGEST:
        return DASH
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def moment(time: float | None) -> str:
    """A point in time: `2026-11-24 13:05:12 UTC`."""
    if not _is_number(time) or not 0 < time < LAST_TIME:
        return DASH
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(value: float | None) -> str:
    """A number of bytes with a binary unit: `742 KiB`."""
    if not _is_number(value) or abs(value) >= LARGE:
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def fields(event: dict[str, Any]) -> str:
    """The text of an event of any kind: its message or reason, else its fields."""
    text = event.get("message") or event.get("reason")
    if text:
        return str(text)
    rest = {key: value for key, value in event.items() if key not in ("kind", "time", "step", "tokens")}
    return ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in rest.items())


def _plain(value: Any) -> str:
    return significant(value) if isinstance(value, float) else str(value)


def language(metrics: dict[str, Any]) -> list[tuple[str, Any]]:
    """Name and value of the metrics of held-out text."""
    language_metrics = (
        (name.removeprefix("language/"), value) for name, value in metrics.items() if name.startswith("language/")
    )
    return [(name.replace("/", ": ").replace("_", " "), value) for name, value in language_metrics]


def address(name: str) -> str:
    """A name as part of a URL: `#`, `?`, `%` and `/` are encoded."""
    return quote(name, safe="", errors="replace")


def place(share: float | None) -> str:
    """The position of a share on a bar, clipped to it: `97.4%`."""
    return f"{100 * min(1.0, max(0.0, share)):.1f}%" if _is_number(share) else "0%"


def shown(value: Any) -> str:
    """A value of a configuration or an evaluation as text."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: DASH}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sort_key(value: Any) -> str:
    """The key by which a column is sorted; empty for a missing value, which stands last."""
    return "" if value is None else str(float(value)) if isinstance(value, int | float) else str(value)


FILTERS = {
    "shown": shown,
    "address": address,
    "place": place,
    "language": language,
    "count": count,
    "decimals": decimals,
    "significant": significant,
    "percent": percent,
    "duration": duration,
    "moment": moment,
    "size": size,
    "fields": fields,
}
