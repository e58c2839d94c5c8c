"""The table "One of each" of CONTRIBUTING.md: what a row's pattern finds is in the files of that row and in no others."""

import re
import subprocess

import pytest

from tests.test_layout import FOLDERS, ROOT


def rows() -> list[tuple[str, ...]]:
    """Thing, files and pattern of every row."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("\n## One of each\n")[1].split("\n## ")[0]
    # A pipe inside of a cell is escaped in Markdown.
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip().replace(r"\|", "|") for cell in row) for row in cells[1:]]


@pytest.mark.parametrize(("thing", "files", "pattern"), rows(), ids=lambda value: value[:40])
def test_there_is_one(thing, files, pattern):
    command = ["grep", "-rlE", "--include=*.py", pattern.strip("`"), *FOLDERS, "benchmarks", "docker"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not found.stderr
    assert sorted(found.stdout.split()) == sorted(re.findall(r"`([^`]+)`", files)), f"there is another {thing}"
