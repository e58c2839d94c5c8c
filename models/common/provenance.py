"""The version of this code, recorded with runs and measurements."""

import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Overrides git where the code has no git history, or a stale one.
VARIABLE = "ECHO_LM_COMMIT"


def commit() -> str:
    """The short commit, with suffix "-dirty" if files differ from it; "unknown" without git."""
    if override := os.environ.get(VARIABLE):
        return override
    return _git("describe", "--always", "--dirty", "--exclude", "*") or "unknown"


def git_state() -> dict[str, Any]:
    """`git_commit` (the full hash, None without git) and `git_dirty` (whether files differ from it)."""
    if override := os.environ.get(VARIABLE):
        return {"git_commit": override.removesuffix("-dirty"), "git_dirty": override.endswith("-dirty")}
    return {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
