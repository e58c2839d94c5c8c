"""Times as the command line takes them."""

import re

from ..models.errors import UserError

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str, option: str) -> float:
    """`90s`, `30m`, `2h` in seconds.

    Args:
        option: whose value it is, for the error.

    Raises:
        UserError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]):
        raise UserError(f"{option} {text!r} is no time: write it as 90s, 30m or 2h")
    return float(match[1]) * UNITS[match[2]]
