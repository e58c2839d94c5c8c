"""Tables: bad values and files cost what they must and no more; large row groups are cut; nested columns."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echo_lm.data_prep.config import SourceConfig
from echo_lm.data_prep.preparing.slices import plan_source
from echo_lm.data_prep.sources import find_source
from echo_lm.models.common.errors import UserError
from tests.helpers.corpus import faults_of, prepared, texts_of, write_lines

TEXTS = [f"row {i} of a table" for i in range(100)]


def damage(path: Path, group: int) -> None:
    """Overwrite the pages of the first column of a row group."""
    column = pq.read_metadata(path).row_group(group).column(0)
    data = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)


def invalid_strings(count: int, bad: dict[int, bytes]) -> pa.Array:
    """Strings of which some are not UTF-8, as programs without checks write them."""
    values = [bad.get(i, TEXTS[i].encode()) for i in range(count)]
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize("kind", ["parquet", "huggingface"])
def test_a_string_that_is_not_utf8_costs_its_row(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    table = pa.table({"text": invalid_strings(100, {7: b"\xff\xfe", 60: b"cut \xc3"}), "other": list(range(100))})
    pq.write_table(table, tmp_path / "in/a.parquet", row_group_size=30)
    dataset = prepared(tmp_path, kind, tmp_path / "in")
    assert {(fault.line, "not UTF-8" in fault.reason) for fault in faults_of(dataset)} == {(8, True), (61, True)}
    assert texts_of(dataset) == sorted(text for i, text in enumerate(TEXTS) if i not in (7, 60))


def test_a_string_that_is_not_utf8_in_the_column_of_a_filter(tmp_path: Path) -> None:
    table = pa.table({"text": TEXTS, "language": invalid_strings(100, {3: b"\xff"})})
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = prepared(tmp_path, "parquet", tmp_path / "a.parquet", keep={"language": (TEXTS[5], TEXTS[6])})
    assert [fault.line for fault in faults_of(dataset)] == [4]
    assert texts_of(dataset) == [TEXTS[5], TEXTS[6]]


@pytest.mark.parametrize("kind", ["parquet", "huggingface"])
def test_a_damaged_row_group_and_a_cut_file_cost_themselves(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    for name, texts in (("a", TEXTS), ("b", [f"b {text}" for text in TEXTS]), ("c", [f"c {text}" for text in TEXTS])):
        pq.write_table(pa.table({"text": texts}), tmp_path / f"in/{name}.parquet", row_group_size=25)
    damage(tmp_path / "in/a.parquet", 2)
    cut = tmp_path / "in/b.parquet"
    cut.write_bytes(cut.read_bytes()[:-50])
    dataset = prepared(tmp_path, kind, tmp_path / "in")
    assert [(Path(fault.file).name, fault.line) for fault in faults_of(dataset)] == [
        ("a.parquet", 51),
        ("b.parquet", 1),
    ]
    assert all("damaged" in fault.reason for fault in faults_of(dataset))
    assert texts_of(dataset) == sorted(TEXTS[:50] + TEXTS[75:] + [f"c {text}" for text in TEXTS])


@pytest.mark.parametrize("kind", ["parquet", "huggingface"])
def test_files_with_other_columns_are_read_for_their_text(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": TEXTS[:50], "score": [0.5] * 50}), tmp_path / "in/a.parquet")
    pq.write_table(pa.table({"url": ["x"] * 50, "text": TEXTS[50:]}), tmp_path / "in/b.parquet")
    pq.write_table(pa.table({"body": TEXTS[50:]}), tmp_path / "in/c.parquet")
    dataset = prepared(tmp_path, kind, tmp_path / "in")
    assert texts_of(dataset) == sorted(TEXTS)
    (fault,) = faults_of(dataset)
    assert Path(fault.file).name == "c.parquet"
    assert "no column 'text': set text_column to one of body" in fault.reason


def test_a_date_that_python_has_no_value_for_costs_its_row(tmp_path: Path) -> None:
    days = pa.array([0] * 99 + [2**60], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"text": TEXTS, "day": days}), tmp_path / "a.parquet")
    assert texts_of(prepared(tmp_path, "parquet", tmp_path / "a.parquet")) == sorted(TEXTS), "the day is not read"
    with pytest.raises(UserError, match="99 keep.day, 1 unreadable"):
        prepared(tmp_path, "parquet", tmp_path / "a.parquet", keep={"day": (0,)}, dataset={"name": "days"})


@pytest.mark.parametrize("count", [1, 5, 100_000])
def test_one_large_row_group_is_cut_into_several_slices(tmp_path: Path, count: int) -> None:
    texts = [f"row {i}" for i in range(count)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=count)
    source = SourceConfig(kind="parquet", paths=(str(tmp_path / "a.parquet"),))
    slices = plan_source(source, find_source(source, tmp_path), unit_bytes=100_000).slices
    assert (len(slices) > 10) == (count > 1_000)
    if count > 1_000:
        dataset = prepared(tmp_path, "parquet", tmp_path / "a.parquet", dataset={"unit_bytes": 100_000})
        assert texts_of(dataset) == sorted(texts)
        assert len(texts) == dataset.manifest.sources[0].records


def test_lines_are_right_in_parts_of_row_groups(tmp_path: Path) -> None:
    bad = {i: b"\xff" for i in (10, 55, 99)}
    pq.write_table(pa.table({"text": invalid_strings(100, bad)}), tmp_path / "a.parquet", row_group_size=50)
    dataset = prepared(tmp_path, "parquet", tmp_path / "a.parquet", dataset={"unit_bytes": 300})
    assert [fault.line for fault in faults_of(dataset)] == [11, 56, 100]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_nested_columns_for_text_and_filters(tmp_path: Path, kind: str) -> None:
    rows = [
        {"message": {"content": text, "by": "x"}, "metadata": {"lang": {"score": i / 100}}, "text": "not this"}
        for i, text in enumerate(TEXTS)
    ]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in")
    else:
        (tmp_path / "in").write_text("".join(json.dumps(row) + "\n" for row in rows))
    filters = {"text_column": "message.content", "at_least": {"metadata.lang.score": 0.5}}
    dataset = prepared(tmp_path, kind, tmp_path / "in", **filters)
    assert texts_of(dataset) == sorted(TEXTS[50:])
    assert dataset.manifest.sources[0].filtered_by == {"at_least.metadata.lang.score": 50}


def test_a_key_with_a_dot_comes_before_a_nested_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a.b": TEXTS, "a": [{"b": "no"}] * 100}), tmp_path / "in")
    assert texts_of(prepared(tmp_path, "parquet", tmp_path / "in", text_column="a.b")) == sorted(TEXTS)


def save(path: Path, table: pa.Table, form: str) -> None:
    writer = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, writer(sink, table.schema) as out:
        out.write_table(table, max_chunksize=7)


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_files(tmp_path: Path, form: str) -> None:
    save(tmp_path / "a.arrow", pa.table({"text": TEXTS, "n": list(range(100))}), form)
    dataset = prepared(tmp_path, "arrow", tmp_path / "a.arrow", at_least={"n": 20}, dataset={"unit_bytes": 500})
    assert texts_of(dataset) == sorted(TEXTS[20:])
    write_lines(tmp_path / "in/b.arrow", ["not Arrow"])
    save(tmp_path / "in/a.arrow", pa.table({"text": TEXTS}), form)
    cut = tmp_path / "in/c.arrow"
    cut.write_bytes((tmp_path / "in/a.arrow").read_bytes()[:-200])
    dataset = prepared(tmp_path, "arrow", tmp_path / "in", dataset={"name": "damaged"})
    assert {Path(fault.file).name for fault in faults_of(dataset)} == {"b.arrow", "c.arrow"}
    assert texts_of(dataset) == sorted(TEXTS)


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_dict({"text": TEXTS})
    whole.save_to_disk(str(tmp_path / "one"), num_shards=3)
    assert texts_of(prepared(tmp_path, "save_to_disk", tmp_path / "one")) == sorted(TEXTS)
    both = datasets.DatasetDict({"train": whole.select(range(60)), "test": whole.select(range(60, 100))})
    both.save_to_disk(str(tmp_path / "two"))
    dataset = prepared(tmp_path, "save_to_disk", tmp_path / "two", dataset={"name": "two"})
    assert texts_of(dataset) == sorted(TEXTS[:60])
    with pytest.raises(UserError, match="no split 'dev': set split to one of train, test"):
        prepared(tmp_path, "save_to_disk", tmp_path / "two", split="dev", dataset={"name": "three"})
    with pytest.raises(UserError, match="was not written by save_to_disk"):
        prepared(tmp_path, "save_to_disk", tmp_path, dataset={"name": "four"})
