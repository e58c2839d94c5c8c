"""What `prepare` and `data show` tell a reader."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from echo_lm.orchestration.preparation.data_show import show
from echo_lm.orchestration.preparation.mixture import print_mixture
from echo_lm.orchestration.preparation.prepare import prepare_dataset
from echo_lm.pipeline.config import RunConfig, load_config


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path, str]:
    """Two sources, one of them with a copy and a broken line; the config, the folder and what was printed."""
    root = tmp_path_factory.mktemp("data")
    for name in "ab":
        lines = [json.dumps({"text": f"{name} is document {i} " + "of words " * 30}) for i in range(60)]
        if name == "b":
            lines += [lines[0], '{"text": "cut']
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    sources = ", ".join(f"{{kind: jsonl, name: {name}, paths: ['{root}/{name}.jsonl']}}" for name in "ab")
    changes = [f"data.sources=[{sources}]", "data.max_bad_share=0.1", "data.heldout_fraction=0.2", "train.steps=40"]
    config = load_config("smoke", changes)
    with redirect_stdout(io.StringIO()) as out:
        folder = prepare_dataset(config.data, root, map)
    return config, folder, out.getvalue()


def test_the_outcome_is_printed_with_what_was_left_out(prepared) -> None:
    _, folder, out = prepared
    assert "a: 60 documents" in out
    assert "b: 60 documents" in out
    assert "left out: 1 duplicates, 1 quarantined" in out
    assert f"quarantined: source b: {folder.parent}/b.jsonl, line 62: not a line of JSON" in out


def test_the_mixture_says_how_often_a_source_is_repeated(prepared, capsys) -> None:
    config, folder, _ = prepared
    print_mixture(config, folder)
    out = capsys.readouterr().out
    assert "50.0%" in out
    assert "never repeats" in out
    assert "this recipe repeats source a" in out


def test_show_prints_documents_with_their_borders_and_draws_lengths(prepared, capsys) -> None:
    config, folder, _ = prepared
    show(config, folder, documents=1, source=None, split="train")
    out = capsys.readouterr().out
    for name in "ab":
        assert f"train, {name}, document 0 of" in out
        assert f"{name} is document" in out
    assert out.count("<|endoftext|>") == 2
    assert (folder / "document_lengths.png").read_bytes().startswith(b"\x89PNG")
