"""Wrong columns, filters and sizes: the message names them, says what is there, and comes before the long work."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echo_lm.data_prep.config import SourceConfig, TokenizerConfig
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.data_prep.preparing.shards import tokenize_unit
from echo_lm.models.common.errors import UserError
from tests.helpers.corpus import faults_of, jsonl_config, prepared, texts_of, write_lines

TEXTS = [f"document {i} of many" for i in range(100)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "huggingface"])
def test_null_texts_are_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    values = [None if i % 10 == 3 else text for i, text in enumerate(TEXTS)]
    (tmp_path / "in").mkdir()
    if kind == "jsonl":
        (tmp_path / "in/a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    else:
        pq.write_table(pa.table({"text": values}), tmp_path / "in/a.parquet")
    dataset = prepared(tmp_path, kind, tmp_path / "in", dataset={"max_bad_share": 0})
    assert texts_of(dataset) == sorted(value for value in values if value)
    record = dataset.manifest.sources[0]
    assert (record.filtered, record.filtered_by, faults_of(dataset)) == (10, {"without text": 10}, [])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("filters", "parts"),
    [
        ({"keep": {"langauge": ("en",)}}, ["100 no column langauge", "text, meta, meta.score"]),
        ({"at_least": {"score": 1}}, ["100 no column score", "meta.score"]),
        ({"at_least": {"meta.score": 9}}, ["100 at_least.meta.score"]),
        ({"keep": {"meta.score": (7, 8)}, "min_characters": 19}, ["90 keep.meta.score", "10 min_characters"]),
    ],
)
def test_filters_that_leave_nothing(tmp_path: Path, kind: str, filters: dict, parts: list[str]) -> None:
    rows = [{"text": text, "meta": {"score": i / 100}} for i, text in enumerate(TEXTS)]
    if kind == "jsonl":
        (tmp_path / "in").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in")
        parts = [part for part in parts if "," not in part and part != "meta.score"]
    with pytest.raises(UserError, match="source mine is empty: no text in 100 records") as caught:
        prepared(tmp_path, kind, tmp_path / "in", **filters)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_the_keys_of_a_record_are_listed(tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"body": "x", "meta": {"title": "y"}}\n' * 5)
    with pytest.raises(UserError, match="no text under 'text': set text_column to one of body, meta, meta.title"):
        prepared(tmp_path, "jsonl", tmp_path / "in", dataset={"max_bad_share": 0})


def test_too_few_documents_are_said_before_any_is_tokenized(tmp_path: Path) -> None:
    functions = []

    def noting(function, units):
        functions.append(function)
        return map(function, units)

    path = write_lines(tmp_path / "in.jsonl", TEXTS[:3])
    config = jsonl_config(path, heldout_fraction=0.001)
    with pytest.raises(UserError, match="no document of 3 fell into the held-out 0.10%: raise heldout_fraction"):
        prepare(config, tmp_path / "data", map_units=noting)
    assert functions
    assert tokenize_unit not in functions
    assert not (tmp_path / "data/corpus/tokenizer.json").exists()


def test_a_source_of_copies_is_said_before_any_is_tokenized(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", TEXTS)
    sources = tuple(SourceConfig(kind="jsonl", name=name, paths=(str(tmp_path / "a.jsonl"),)) for name in "ab")
    with pytest.raises(UserError, match="source b is empty: none of its documents is left to train on"):
        prepare(jsonl_config(tmp_path, sources=sources), tmp_path / "data")
    assert not (tmp_path / "data/corpus/tokenizer.json").exists()


def test_a_tokenizer_that_cannot_be_loaded_is_said_before_the_text_is_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", TEXTS)
    with pytest.raises(UserError, match="cannot be loaded"):
        prepared(tmp_path, "jsonl", path, dataset={"tokenizer": TokenizerConfig(load=str(tmp_path / "in.jsonl"))})
    assert not (tmp_path / "data/corpus/plan.json").exists()


def test_documents_beyond_a_limit_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [*TEXTS, TEXTS[0], " "])
    dataset = prepared(tmp_path, "jsonl", path, limit_documents=30)
    record = dataset.manifest.sources[0]
    assert (record.documents, record.beyond_limit, record.records) == (30, 71, 102)
    dataset = prepared(tmp_path, "jsonl", path, limit_tokens=300, dataset={"name": "tokens"})
    record = dataset.manifest.sources[0]
    assert record.records == record.documents + record.beyond_limit + record.duplicates + record.filtered


def test_an_interrupted_preparation_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its finished units lack what this version notes, and are done again."""
    path = write_lines(tmp_path / "in.jsonl", TEXTS)
    work = tmp_path / "data/corpus/work"
    work.mkdir(parents=True)
    for suffix in ("npz", "zst"):
        (work / f"clean-00000.{suffix}").write_bytes(b"")
    (work / "clean-00000.json").write_text('{"index": 0, "key": "of another version"}')
    assert len(texts_of(prepared(tmp_path, "jsonl", path))) == 100
