"""The pages files.md and compatibility.md agree with the code; tests/docs/test_handbook.py compares a real run with them."""

import ast
import re
import runpy

import pytest

from echo_lm.models.common import run_layout
from echo_lm.pipeline.checkpoint.format import FORMAT
from tests.test_layout import ROOT, SOURCES

REFERENCE = ROOT / "docs/reference"
FILES = (REFERENCE / "files.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["files.md", "compatibility.md"])
def test_the_generated_parts_are_current(page):
    text = (REFERENCE / page).read_text(encoding="utf-8")
    with_parts = runpy.run_path(str(REFERENCE / "generate_files.py"))["with_parts"]
    assert with_parts(text) == text, "run: make reference"
    assert "make reference" in text


def test_every_name_of_a_run_folder_is_listed():
    names = {
        value
        for key, value in vars(run_layout).items()
        if key.isupper() and isinstance(value, str) and "*" not in value
    }
    assert len(names) > 15
    assert [name for name in names if name not in FILES] == []


def test_every_kind_of_event_that_is_written_is_listed():
    written = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            kinds = [argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant)]
            if name in ("_event", "record_event") and kinds:
                written.add(kinds[0])
    assert {"start", "step", "lost", "evaluation"} <= written
    assert {kind for kind in written if not re.search(rf"^- `{kind}`: ", FILES, re.M)} == set()


def test_the_format_of_checkpoints_is_the_one_that_is_promised():
    assert f"Format {FORMAT} is read" in (REFERENCE / "compatibility.md").read_text(encoding="utf-8")
