"""The files that a run's configuration names are found after both have moved together."""

import pytest

from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.run.folder import RunFolder

SUITE = "name: mini\nlanguage: {tokens: 512, sequence_length: 64}\n"


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    (tree / "data").mkdir(parents=True)
    (tree / "mini.yaml").write_text(SUITE)
    config = load_config("smoke", ["name=exp", f"evaluation.suites=['language', '{tree}/mini.yaml']"])
    RunFolder(tree / "runs/exp").prepare(config, tree / "data")
    return tree


def test_a_suite_file_moves_with_the_tree(tree):
    stored = RunFolder(tree / "runs/exp").load_config()
    assert stored.evaluation.suites == ("language", f"{tree}/mini.yaml")
    moved = tree.rename(tree.with_name("elsewhere"))
    assert RunFolder(moved / "runs/exp").load_config().evaluation.suites == ("language", f"{moved}/mini.yaml")


def test_a_relative_path_is_found_from_another_folder(tree, monkeypatch):
    monkeypatch.chdir(tree)
    config = load_config("smoke", ["name=other", "evaluation.suites=['mini.yaml']"])
    RunFolder("runs/other").prepare(config, tree / "data")
    monkeypatch.chdir(tree.parent)
    assert RunFolder("tree/runs/other").load_config().evaluation.suites == ("tree/mini.yaml",)


def test_a_suite_file_that_is_nowhere_keeps_its_name(tree):
    """So that the message names what the user wrote."""
    (tree / "mini.yaml").unlink()
    assert RunFolder(tree / "runs/exp").load_config().evaluation.suites[1] == f"{tree}/mini.yaml"
    (tree / "runs/exp/data.json").unlink()
    assert RunFolder(tree / "runs/exp").load_config().evaluation.suites[1] == f"{tree}/mini.yaml"
