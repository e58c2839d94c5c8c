"""The layout that CONTRIBUTING.md describes: sizes of files and packages, docstrings of packages, paths that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "models", "data_prep", "evals", "pipeline", "orchestration")
PACKAGES = sorted(
    str(init.parent.relative_to(ROOT)) for folder in FOLDERS for init in (ROOT / folder).rglob("__init__.py")
)
SOURCES = sorted(
    path for folder in (*FOLDERS, "benchmarks", "docker", "tests") for path in (ROOT / folder).rglob("*.py")
)
LONGEST_FILE, LARGEST_PACKAGE = 350, 14


def test_no_source_file_is_too_long_to_read_at_once():
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_small_and_says_what_it_owns(package):
    modules = [path for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"]
    if package != "orchestration/cli":  # one file a command
        assert len(modules) <= LARGEST_PACKAGE
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    assert docstring, f"{package}/__init__.py says nothing"
    for name in re.findall(r"`([\w/]+\.py)`", docstring):
        assert (ROOT / package / name).is_file(), f"{package}/__init__.py names {name}, which is not there"


def test_orchestration_holds_packages_alone():
    assert [path.name for path in (ROOT / "orchestration").glob("*.py")] == ["__init__.py"]


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text)) | set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert len(named) > 30
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
