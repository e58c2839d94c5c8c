"""Durations as people write them: `90s`, `30m`, `2h`, `3h55m`."""

import re

_PATTERN = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def duration_seconds(text: str) -> float:
    """Parse a duration such as `90s`, `30m`, `2h` or `3h55m`; returns seconds.

    Raises:
        ValueError: not such a duration, or zero.
    """
    match = _PATTERN.fullmatch(text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise ValueError(f"{text!r} is no time: write it as 90s, 30m, 2h or 3h55m")
    return total
