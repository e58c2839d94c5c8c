"""Megatron-LM's indexed datasets: what is exported can be read by its own rules, and imported again."""

from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from echo_lm.data_prep.formats.megatron import read_index
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.loading.megatron import export_megatron
from echo_lm.models.common.errors import UserError
from tests.helpers.corpus import faults_of, prepared, texts_of, write_lines


def read_as_megatron(prefix: Path) -> list[list[int]]:
    """The documents, read as `megatron/core/datasets/indexed_dataset.py` does."""
    with open(f"{prefix}.idx", "rb") as file:
        assert file.read(9) == b"MMIDIDX\x00\x00"
        assert np.fromfile(file, "<u8", 1)[0] == 1
        dtype = {8: np.uint16, 4: np.int32}[int(np.fromfile(file, "u1", 1)[0])]
        sequences, documents = np.fromfile(file, "<u8", 2)
        lengths = np.fromfile(file, "<i4", sequences)
        pointers = np.fromfile(file, "<i8", sequences)
        borders = np.fromfile(file, "<i8", documents)
        assert not file.read()
    data = Path(f"{prefix}.bin").read_bytes()
    rows = [np.frombuffer(data, dtype, count, at).tolist() for count, at in zip(lengths, pointers, strict=True)]
    return [list(chain(*rows[a:b])) for a, b in pairwise(borders)]


def export(dataset: Dataset, folder: Path, split: str = "train") -> Path:
    assert export_megatron(dataset, split, folder / split) == dataset.split(split).num_tokens
    return folder / split


def test_an_export_holds_every_document_with_its_separator(dataset: Dataset, tmp_path: Path) -> None:
    for split in ("train", "heldout"):
        stream = dataset.split(split)
        documents = read_as_megatron(export(dataset, tmp_path, split))
        assert documents == [stream.document(i).tolist() for i in range(stream.num_documents)]
    with pytest.raises(UserError, match=r"train.bin is there already"):
        export_megatron(dataset, "train", tmp_path / "train")


def test_what_was_exported_is_imported_with_the_same_ids(dataset: Dataset, tmp_path: Path) -> None:
    prefix = export(dataset, tmp_path)
    tokenizer = f"{prefix}.tokenizer.json"
    again = prepared(
        tmp_path,
        "megatron",
        f"{prefix}.bin",
        tokenizer=tokenizer,
        normalisation="none",
        dataset={
            "tokenizer": {"load": tokenizer},
            "exact_duplicates": "keep",
            "heldout_fraction": 0,
            "unit_bytes": 2_000,
        },
    )
    stream, copy = dataset.split("train"), again.split("train")
    assert len(copy.shards) > 3
    assert np.array_equal(stream.read(0, len(stream)), copy.read(0, len(copy)))
    assert texts_of(again) == sorted(
        dataset.tokenizer().decode(stream.document(i)[:-1].tolist()) for i in range(stream.num_documents)
    )


@pytest.mark.parametrize("damage", ["no index", "cut index", "cut tokens", "other file", "ids"])
def test_files_that_do_not_fit_are_one_fault(dataset: Dataset, tmp_path: Path, damage: str) -> None:
    (tmp_path / "in").mkdir()
    prefix, good = export(dataset, tmp_path / "in"), export(dataset, tmp_path / "in", "heldout")
    binary, index = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    if damage == "no index":
        index.unlink()
    elif damage == "cut index":
        index.write_bytes(index.read_bytes()[:-5])
    elif damage == "cut tokens":
        binary.write_bytes(binary.read_bytes()[:-2])
    elif damage == "other file":
        index.write_text("something else")
    else:
        data = np.fromfile(binary, "<u2")
        data[5] = 60_000
        data.tofile(binary)
    tokenizer = f"{good}.tokenizer.json"
    imported = prepared(tmp_path, "megatron", tmp_path / "in", tokenizer=tokenizer, dataset={"seed": 1})
    (fault,) = faults_of(imported)
    assert fault.file == str(binary)
    assert ("token 60000 is beyond" in fault.reason) == (damage == "ids")
    assert imported.manifest.sources[0].documents >= dataset.split("heldout").num_documents


def test_a_large_vocabulary_takes_int32(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({f"word{i}": i for i in range(70_000)}, unk_token="word0")).save(str(tmp_path / "words"))
    path = write_lines(tmp_path / "in.jsonl", [f"word{i}" for i in range(100)])
    wide = prepared(tmp_path, "jsonl", path, dataset={"tokenizer": {"load": str(tmp_path / "words")}})
    prefix = export(wide, tmp_path)
    assert read_index(f"{prefix}.bin").dtype == np.dtype("<i4")
    stream = wide.split("train")
    assert list(chain(*read_as_megatron(prefix))) == stream.read(0, len(stream)).tolist()
