"""What a user can get wrong: one line that says what, where, and what would be right; nothing is lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.loading.verify import verify
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.models.common.errors import UserError
from tests.helpers.corpus import jsonl_config, tree


def refused(action: Callable[[], object], *parts: str) -> None:
    """`action` raises a UserError of one line that holds every part."""
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def source_config(path: Path, kind: str = "jsonl", **changes) -> DatasetConfig:
    return jsonl_config(path, sources=(SourceConfig(kind=kind, name="mine", paths=(str(path),), **changes),))


def test_missing_source(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "*.jsonl"
    refused(lambda: prepare(source_config(path), tmp_path), "source mine", str(path), "correct sources.paths")


@pytest.mark.parametrize(("kind", "content"), [("jsonl", ""), ("text", ""), ("jsonl", "\n \n"), ("text", " \n")])
def test_empty_source(tmp_path: Path, kind: str, content: str) -> None:
    (tmp_path / "empty").write_text(content)
    refused(lambda: prepare(source_config(tmp_path / "empty", kind), tmp_path / "data"), "source mine is empty")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut o', "not a line of JSON"),
        (b'{"title": "no text"}', "set text_column"),
        (b'{"text": 7}', "set text_column"),
        (b'["text"]', "not a JSON object"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "broken.jsonl"
    good = b'{"text": "good"}\n' * 5
    path.write_bytes(good + line + b"\n")
    refused(lambda: prepare(source_config(path), tmp_path / "data"), "1 of 6 records", f"{path}, line 6", message)


def test_a_text_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    refused(
        lambda: prepare(source_config(tmp_path / "latin.txt", "text"), tmp_path / "data"), "not UTF-8 (byte 3", "latin"
    )


def test_nothing_held_out(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "only one"}\n')
    refused(lambda: prepare(source_config(tmp_path / "one.jsonl"), tmp_path / "data"), "raise heldout_fraction")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"tokenizer": TokenizerConfig(vocab_size=451)}, ["tokenizer.vocab_size=450, not 451"]),
        ({"heldout_fraction": 0.2}, ["heldout_fraction=0.1, not 0.2"]),
        ({"seed": 3}, ["seed=0, not 3"]),
    ],
)
def test_another_config_in_the_folder(corpus: Path, tmp_path: Path, changes: dict, parts: list[str]) -> None:
    folder = prepare(jsonl_config(corpus), tmp_path)
    before = tree(folder)
    refused(lambda: prepare(jsonl_config(corpus, **changes), tmp_path), str(folder), "delete the folder", *parts)
    assert tree(folder) == before


def test_another_config_in_an_unfinished_folder(corpus: Path, tmp_path: Path) -> None:
    def die(function: object, units: object) -> list:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(jsonl_config(corpus), tmp_path, map_units=die)
    refused(lambda: prepare(jsonl_config(corpus, seed=3), tmp_path), "seed=0, not 3")


def test_a_source_that_changed_halfway(tmp_path: Path) -> None:
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps({"text": f"some text {i}"}) + "\n" for i in range(100)))

    def die(function: object, units: object) -> list:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source_config(path), tmp_path / "data", map_units=die)
    path.write_text(path.read_text().replace("text 7", "text 8"))
    refused(lambda: prepare(source_config(path), tmp_path / "data"), f"{path} changed since")


def test_corrupt_shard(corpus: Path, tmp_path: Path) -> None:
    folder = prepare(jsonl_config(corpus), tmp_path)
    verify(folder)
    shard = folder / "train-00001-000.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    expected = next(s for s in Dataset.open(folder).manifest.shards if s.file == shard.name).sha256[:12]
    for check in (lambda: verify(folder), lambda: Dataset.open(folder, verify=True)):
        refused(check, f"{shard} is corrupt", f"{expected} expected", "prepare it again")


def test_corrupt_document_offsets(corpus: Path, tmp_path: Path) -> None:
    folder = prepare(jsonl_config(corpus), tmp_path)
    offsets = folder / "train-00001-000.docs.npy"
    data = bytearray(offsets.read_bytes())
    data[-8:] = (int.from_bytes(data[-8:], "little") + 1).to_bytes(8, "little")
    offsets.write_bytes(data)
    refused(lambda: verify(folder), f"{offsets} is corrupt", "prepare it again")
    refused(lambda: Dataset.open(folder).split("train"), f"{offsets} is corrupt")


@pytest.mark.parametrize("damage", ["shorter", "gone", "offsets gone"])
def test_a_shard_of_another_size_is_noticed_without_hashing(corpus: Path, tmp_path: Path, damage: str) -> None:
    folder = prepare(jsonl_config(corpus), tmp_path)
    shard = folder / ("train-00000-000.docs.npy" if damage == "offsets gone" else "train-00000-000.bin")
    if damage == "shorter":
        os.truncate(shard, shard.stat().st_size - 2)
    else:
        shard.unlink()
    refused(lambda: Dataset.open(folder), str(shard), "prepare it again")


def test_a_tokenizer_that_is_not_the_datas(corpus: Path, tmp_path: Path) -> None:
    folder = prepare(jsonl_config(corpus), tmp_path)
    other = prepare(jsonl_config(corpus, name="other", tokenizer=TokenizerConfig(vocab_size=449)), tmp_path)
    (folder / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    refused(lambda: Dataset.open(folder), "tokenizer.json", "does not match the data")
    (folder / "tokenizer.json").unlink()
    refused(lambda: Dataset.open(folder), "tokenizer.json is missing")


def test_not_a_dataset(tmp_path: Path, dataset: Dataset) -> None:
    refused(lambda: Dataset.open(tmp_path), "not a prepared dataset", "echo-lm prepare")
    (tmp_path / "manifest.json").write_text("{}")
    refused(lambda: Dataset.open(tmp_path), "not a manifest of this version")
    (tmp_path / "manifest.json").write_text("{")
    refused(lambda: Dataset.open(tmp_path), "not valid JSON")
    refused(lambda: dataset.split("test"), "no split 'test'")
    refused(lambda: dataset.split("train", "wiki"), "no source 'wiki': it has words")


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "train-00001-000.bin",
        "work/clean-00001.zst",
        "work/clean-00002.json",
        "work/tokens-00002.json",
        "manifest.json",
    ],
)
def test_no_space_left(corpus: Path, tmp_path: Path, name: str) -> None:
    """/dev/full says that the disk is full, truly, wherever a link to it stands in for the file being written."""
    undisturbed = prepare(jsonl_config(corpus), tmp_path / "a")
    path = tmp_path / "b" / "corpus" / name
    path.parent.mkdir(parents=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.symlink_to("/dev/full")
    refused(lambda: prepare(jsonl_config(corpus), tmp_path / "b"), "no space left", "run the same command again")
    assert not path.exists()
    assert tree(prepare(jsonl_config(corpus), tmp_path / "b")) == tree(undisturbed)


def test_a_root_that_is_a_file(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: prepare(jsonl_config(corpus), tmp_path / "file"), "cannot be created", "name a folder you own")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": []}, "at least 1 item"),
        ({"sources": [{"kind": "text"}]}, "needs paths"),
        ({"sources": [{"kind": "python-stdlib", "paths": ["x"]}]}, "takes no paths"),
        ({"sources": [{"kind": "python-stdlib"}] * 2}, "two sources are called 'python-stdlib'"),
        ({"sources": [{"kind": "python-stdlib", "color": 1}]}, "Extra inputs"),
        ({"tokenizer": {"vocab_size": 385}}, "greater than or equal to 386"),
        ({"name": "../up"}, "should match pattern"),
        ({"heldout_fraction": 1.0}, "less than 1"),
    ],
)
def test_wrong_config(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetConfig(**{"name": "d", "sources": [{"kind": "python-stdlib"}], **fields})
