"""Every key of every configuration is described once, in its class, and stands on the reference page."""

import ast
import importlib
import re
import runpy
import subprocess
import sys

import pytest

from echo_lm.models.common.config import Config
from tests.test_layout import FOLDERS, ROOT, SOURCES

SCRIPT, PAGE = ROOT / "docs/reference/generate.py", ROOT / "docs/reference/config.md"


def configs() -> dict[str, type[Config]]:
    """All configuration classes of the package, by module and name."""
    found = {}
    for path in SOURCES:
        folder, *inner = path.relative_to(ROOT).with_suffix("").parts
        if folder not in FOLDERS or "(Config" not in path.read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(".".join(("echo_lm", folder, *inner)))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            value = getattr(module, node.name, None) if isinstance(node, ast.ClassDef) else None
            if isinstance(value, type) and issubclass(value, Config) and value is not Config:
                found[f"{module.__name__}.{node.name}"] = value
    return found


CONFIGS = configs()


def test_they_were_found():
    assert len(CONFIGS) > 35


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_key_is_described_below_it(config):
    assert config.__doc__, "the class says nothing"
    assert "Attributes:" not in config.__doc__, "keys are described below themselves"
    for name, field in config.model_fields.items():
        assert field.description, f"{name} has no description: write a string below it"
        assert re.fullmatch(r"[A-Z`0].*[.)]", field.description, re.S), f"{name}: {field.description!r} is no sentence"


def test_the_page_is_current(tmp_path):
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / "config.md")], check=True)
    assert PAGE.read_text(encoding="utf-8") == (tmp_path / "config.md").read_text(encoding="utf-8"), (
        "run: make reference"
    )


def test_every_configuration_stands_on_the_page():
    reference = runpy.run_path(str(SCRIPT))["Reference"]()
    reference.page()
    assert {config.__name__ for config in CONFIGS.values()} == {config.__name__ for config in reference.title_of}
