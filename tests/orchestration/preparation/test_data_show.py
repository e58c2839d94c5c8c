"""What `prepare` and `data show` tell a reader."""

import io
import json
import os
import shutil
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from echo_lm.data_prep.config import TokenizerConfig
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.preparation.data_show import show
from echo_lm.orchestration.preparation.mixture import print_mixture
from echo_lm.orchestration.preparation.prepare import prepare_dataset
from echo_lm.pipeline.config import RunConfig, load_config
from tests.helpers.corpus import jsonl_config, write_lines


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


def test_a_source_without_weight_is_named(prepared, capsys) -> None:
    config, folder, _ = prepared
    mixture = config.mixture.model_copy(update={"text_weights": {"a": 1.0}})
    print_mixture(config.model_copy(update={"mixture": mixture}), folder)
    out = capsys.readouterr().out
    assert "this recipe reads nothing of source b: mixture.text_weights leaves it out" in out
    assert "nothing of source a" not in out


def test_a_dataset_that_cannot_be_written_is_shown(prepared, capsys) -> None:
    config, folder, _ = prepared
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        copy = shutil.copytree(folder, root / "dataset", ignore=shutil.ignore_patterns("*.png"))
        root.chmod(0o755)
        user = os.geteuid()
        copy.chmod(0o555)
        os.seteuid(user or 65534)  # root may write everywhere
        try:
            show(config, copy, documents=1, source="a", split="train")
            assert "document lengths are not drawn" in capsys.readouterr().out
            with pytest.raises(UserError, match="cannot be written"):
                show(config, copy, documents=1, source="a", split="train", figure_file=copy / "here.png")
        finally:
            os.seteuid(user)
            copy.chmod(0o755)
        show(config, copy, documents=0, source="a", split="train", figure_file=root / "lengths.png")
        assert (root / "lengths.png").is_file()


def test_what_a_source_skipped_and_a_tokenizer_lost_is_printed(tmp_path: Path) -> None:
    for i in range(60):
        write_lines(tmp_path / f"in/{i}.jsonl", [f"words {i} 世界"])
    write_lines(tmp_path / "in/.hidden.jsonl", ["x"])
    vocabulary = {"[UNK]": 0, "words": 1, **{str(i): i + 2 for i in range(60)}}
    Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    load = TokenizerConfig(load=str(tmp_path / "tokenizer.json"))
    with redirect_stdout(io.StringIO()) as out:
        prepare_dataset(jsonl_config(tmp_path / "in", tokenizer=load, heldout_fraction=0.2), tmp_path / "data", map)
    lines = out.getvalue()
    assert "60 documents" in lines
    assert "from 60 files" in lines
    assert f"words: 1 files or folders not read (.*), the first: {tmp_path}/in/.hidden.jsonl" in lines
    assert "of the tokens stand for text that the tokenizer does not know" in lines
    assert "the tokenizer loses at least" in lines
