"""Bad input in the middle of good: set aside with file and line, counted, and too much of it stops the preparation."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from echo_lm.data_prep.config import DatasetConfig, SourceConfig
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.models.common.errors import UserError
from tests.helpers.corpus import jsonl_config

GOOD = [f"good document number {i} of many" for i in range(40)]


def config_of(path: Path, kind: str, share: float = 1.0, **changes) -> DatasetConfig:
    source = SourceConfig(kind=kind, name="mine", paths=(str(path),))
    return jsonl_config(path, sources=(source,), max_bad_share=share, heldout_fraction=0.3, **changes)


def jsonl(path: Path, *broken: bytes) -> Path:
    """Good lines, and the broken ones as lines 11, 12, ..."""
    lines = [json.dumps({"text": text}).encode() for text in GOOD]
    path.write_bytes(b"\n".join([*lines[:10], *broken, *lines[10:]]) + b"\n")
    return path


def parquet(path: Path, column: str = "text") -> Path:
    pq.write_table(pa.table({column: GOOD}), path, row_group_size=10)
    return path


def broken_lines(folder: Path) -> tuple[Path, str, dict[int, str]]:
    broken = {
        11: (b'{"text": "cut o', "not a line of JSON"),
        12: (b'{"title": "no text"}', "no text under 'text'"),
        13: (b'{"text": "\xff"}', "not UTF-8"),
        14: (b'{"text": "NUL \\u0000 here"}', "NUL byte"),
        15: (b'{"text": "\\ud800 half"}', "surrogate"),
        16: (b'{"text": "' + b"long " * 2_000 + b'"}', "longer than max_document_bytes=5,000"),
        17: (b"[" * 100_000, "not a line of JSON"),
        18: (b'{"text": "' + b"x" * 200_000 + b'"}', "longer than max_document_bytes=5,000"),
    }
    path = jsonl(folder / "in.jsonl", *(line for line, _ in broken.values()))
    return path, "jsonl", {line: reason for line, (_, reason) in broken.items()}


def damaged_parquet_pages(folder: Path) -> tuple[Path, str, dict[int, str]]:
    """The third of four row groups is overwritten, the footer is whole."""
    path = parquet(folder / "in.parquet")
    column = pq.read_metadata(path).row_group(2).column(0)
    data = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    return path, "parquet", {21: "the parquet file is damaged"}


def cut_off_gzip(folder: Path) -> tuple[Path, str, dict[int, str]]:
    folder.joinpath("many").mkdir()
    jsonl(folder / "many" / "a.jsonl")
    lines = jsonl(folder / "rest.jsonl").read_bytes().replace(b"good", b"another")
    (folder / "many" / "b.jsonl.gz").write_bytes(gzip.compress(lines)[:-9])
    return folder / "many", "jsonl", {40: "cannot be read on"}


def cut_off_zstd(folder: Path) -> tuple[Path, str, dict[int, str]]:
    (folder / "many").mkdir()
    jsonl(folder / "many" / "a.jsonl")
    lines = jsonl(folder / "rest.jsonl").read_bytes().replace(b"good", b"another")
    (folder / "many" / "b.jsonl.zst").write_bytes(zstandard.compress(lines)[:-9])
    return folder / "many", "jsonl", {1: "cannot be read on"}


def bad_text_files(folder: Path) -> tuple[Path, str, dict[int, str]]:
    (folder / "texts").mkdir()
    for i, text in enumerate(GOOD):
        (folder / "texts" / f"{i:02}.txt").write_text(text)
    (folder / "texts" / "x.txt").write_bytes(b"one\ntwo\nthr\xe9e\n")
    return folder / "texts", "text", {3: "not UTF-8"}


CASES = [broken_lines, damaged_parquet_pages, cut_off_gzip, cut_off_zstd, bad_text_files]


@pytest.mark.parametrize("case", CASES)
def test_bad_documents_are_set_aside_by_file_and_line(case: Callable, tmp_path: Path) -> None:
    path, kind, expected = case(tmp_path)
    folder = prepare(config_of(path, kind, max_document_bytes=5_000), tmp_path / "data")
    faults = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert {fault["line"] for fault in faults} == set(expected)
    for fault in faults:
        assert expected[fault["line"]] in fault["reason"]
        assert fault["file"].startswith(str(path))
    record = Dataset.open(folder, verify=True).manifest.sources[0]
    assert record.quarantined == len(expected)
    assert record.documents == record.records - record.quarantined - record.duplicates
    lost_rows = 10 if kind == "parquet" else 0
    assert record.documents >= len(GOOD) - lost_rows


@pytest.mark.parametrize("case", CASES)
def test_more_of_it_than_the_set_share_stops_with_one_line(case: Callable, tmp_path: Path) -> None:
    path, kind, expected = case(tmp_path)
    with pytest.raises(UserError) as caught:
        prepare(config_of(path, kind, share=0.001, max_document_bytes=5_000), tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message
    first = min(expected)
    for part in ("source mine", "data.max_bad_share=0.001", f"line {first}: ", expected[first], "quarantine.jsonl"):
        assert part in message


def test_with_a_larger_share_it_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    path, kind, expected = broken_lines(tmp_path)
    with pytest.raises(UserError):
        prepare(config_of(path, kind, share=0.001, max_document_bytes=5_000), tmp_path / "data")
    again = config_of(path, kind, share=1.0, max_document_bytes=5_000)
    manifest = Dataset.open(prepare(again, tmp_path / "data"), verify=True).manifest
    assert manifest.sources[0].quarantined == len(expected)
    assert manifest.config == again


@pytest.mark.parametrize(
    ("make", "kind", "parts"),
    [
        (lambda path: path.write_bytes(parquet(path).read_bytes()[:-40]), "parquet", ("line 1", "damaged")),
        (lambda path: parquet(path, "body"), "parquet", ("no column 'text'", "set text_column to one of body")),
        (lambda path: path.write_bytes(b""), "parquet", ("source mine is empty",)),
        (lambda path: pq.write_table(pa.table({"text": pa.array([], pa.string())}), path), "parquet", ("is empty",)),
        (lambda path: path.write_text("not gzip"), "jsonl", ("line 1", "not a line of JSON")),
    ],
)
def test_a_source_that_is_bad_altogether(make: Callable, kind: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / ("in.parquet" if kind == "parquet" else "in.jsonl.gz")
    make(path)
    with pytest.raises(UserError) as caught:
        prepare(config_of(path, kind, share=0.01), tmp_path / "data")
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_document_of_50_megabytes(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", json.dumps({"text": "word " * 10_000_000}).encode())
    folder = prepare(config_of(path, "jsonl", share=0.05), tmp_path / "data")
    (fault,) = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert (fault["line"], fault["reason"].split(":")[0]) == (11, "longer than max_document_bytes=10,000,000")
    assert Dataset.open(folder).manifest.sources[0].documents == len(GOOD)


def test_the_share_is_of_lost_bytes_too(tmp_path: Path) -> None:
    """One fault among very many records, but half of the bytes."""
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "a.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3_000)))
    table = gzip.compress(json.dumps({"text": "long " * 30_000}).encode(), compresslevel=0)
    (tmp_path / "many" / "b.jsonl.gz").write_bytes(table[:-9])
    with pytest.raises(UserError, match=r"1 of 3001 records and 1\d\d,\d{3} of 2\d\d,\d{3} bytes in whole files"):
        prepare(config_of(tmp_path / "many", "jsonl", share=0.1), tmp_path / "data")
