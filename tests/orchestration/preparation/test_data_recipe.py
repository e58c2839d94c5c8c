"""A recipe that says only how to prepare data is enough for `prepare` and `data`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from echo_lm.orchestration.cli.main import main
from tests.helpers.corpus import write_lines

TEXTS = [f"document {i} of many" for i in range(100)]


@pytest.fixture
def echo_lm(tmp_path: Path, monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """Exit code, output and errors of the command line, in this process, with a recipe and its text in the folder."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.jsonl", TEXTS)
    source = f"{{kind: jsonl, name: mine, paths: ['{tmp_path}/in.jsonl']}}"
    recipe = f"data:\n  name: mine\n  sources: [{source}]\n  tokenizer: {{vocab_size: 400}}\n  heldout_fraction: 0.2\n"
    (tmp_path / "data.yaml").write_text(recipe)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["echo-lm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capfd.readouterr())

    return run


def test_a_recipe_of_data_alone(echo_lm, tmp_path: Path) -> None:
    code, out, err = echo_lm("prepare", "data.yaml", "--no-ray")
    assert (code, err) == (0, "")
    assert "mine: 100 documents" in out
    assert "from 1 files" in out
    assert "splits are disjoint" in echo_lm("prepare", "data.yaml", "--verify")[1]
    assert "document 0 of" in echo_lm("data", "show", "data.yaml")[1]
    assert "train.idx" in echo_lm("data", "export", "data.yaml", "--prefix", "train")[1]
    assert {"train.bin", "train.idx", "train.tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
    assert "is there already" in echo_lm("data", "export", "data.yaml", "--prefix", "train")[2]
    assert "nothing to do" in echo_lm("prepare", "data.yaml", "--no-ray")[1]
    write_lines(tmp_path / "in.jsonl", TEXTS[1:])
    code, _, err = echo_lm("prepare", "data.yaml", "--no-ray")
    assert (code, err.count("\n")) == (2, 1)
    assert "in.jsonl is not what it was since" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "data.yaml", "data.tokenizer.vocabsize=3"), "did you mean 'vocab_size'"),
        (("prepare", "data.yaml", "data.sources=[]"), "data.sources"),
        (("prepare", "data.yaml", "train.steps=3"), "is missing"),
    ],
)
def test_what_is_wrong_is_one_line(echo_lm, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = echo_lm(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
