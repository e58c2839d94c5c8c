"""The version of this code: what runs and measurements are stamped with."""

import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Says the commit where the code lies without its git history, or with a stale one.
VARIABLE = "ECHO_LM_COMMIT"


def commit() -> str:
    """The short commit, with "-dirty" behind it where files differ from it; "unknown" without git."""
    if given := os.environ.get(VARIABLE):
        return given
    return _git("describe", "--always", "--dirty", "--exclude", "*") or "unknown"


def git_state() -> dict[str, Any]:
    """`git_commit` (the full hash, None without git) and `git_dirty` (whether files differ from it)."""
    if given := os.environ.get(VARIABLE):
        return {"git_commit": given.removesuffix("-dirty"), "git_dirty": given.endswith("-dirty")}
    return {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
