"""Which code a result is of."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The checkout's commit, with "-dirty" behind it where files differ from it; "unknown" without git. `ECHO_LM_COMMIT` goes
    before, as for runs."""
    if given := os.environ.get("ECHO_LM_COMMIT"):
        return given
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
