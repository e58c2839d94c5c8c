"""A stream of shards reads like one array of tokens and one of documents."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lm.data_prep.config import SourceConfig
from echo_lm.data_prep.loading.dataset import Dataset, TokenStream
from echo_lm.data_prep.preparing.prepare import prepare
from tests.helpers.corpus import jsonl_config, write_documents


def raw(dataset: Dataset, split: str) -> np.ndarray:
    """All tokens of a split, read without any of our code."""
    names = sorted(path.name for path in dataset.folder.glob(f"{split}-*.bin"))
    return np.concatenate([np.fromfile(dataset.folder / name, dtype="<u2") for name in names])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_reading_crosses_shards(dataset: Dataset, data: st.DataObject) -> None:
    stream, tokens = dataset.split("train"), raw(dataset, "train")
    assert len(stream.shards) > 4
    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    read_tokens = stream.read(start, stop)
    assert read_tokens.dtype == np.int64
    assert np.array_equal(read_tokens, tokens[start:stop])
    # A document starts at 0 and after every separator.
    starts = np.append(0, np.flatnonzero(tokens == 0) + 1)
    expected = starts[(starts >= start) & (starts < min(stop, len(tokens)))]
    assert np.array_equal(stream.document_starts(start, stop), expected)


def test_totals(dataset: Dataset) -> None:
    for split in ("train", "heldout"):
        stream, tokens = dataset.split(split), raw(dataset, split)
        assert len(stream) == stream.num_tokens == len(tokens)
        assert np.array_equal(stream.tokens, tokens)
        assert stream.num_documents == (tokens == 0).sum()
        assert stream.document_offsets.tolist() == [0, *(np.flatnonzero(tokens == 0) + 1)]


def test_one_shard_stays_on_disk(corpus: Path, tmp_path: Path) -> None:
    config = jsonl_config(corpus, unit_bytes=10**6, shard_tokens=10**6)
    stream = Dataset.open(prepare(config, tmp_path)).split("train")
    assert isinstance(stream.tokens, np.memmap)


def test_a_source_is_read_alone(corpus: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "more.jsonl", 100, seed=2, awkward=[])
    more = SourceConfig(kind="jsonl", name="more", paths=(str(tmp_path / "more.jsonl"),))
    config = jsonl_config(corpus, sources=(*jsonl_config(corpus).sources, more))
    dataset = Dataset.open(prepare(config, tmp_path))
    words, both = dataset.split("train", "words"), dataset.split("train")
    others = dataset.split("train", "more")
    assert words.num_tokens + others.num_tokens == both.num_tokens
    assert np.array_equal(both.read(0, words.num_tokens), words.tokens)
    assert np.array_equal(both.read(words.num_tokens, both.num_tokens), others.tokens)


def test_positions_outside_are_refused(dataset: Dataset) -> None:
    stream: TokenStream = dataset.split("heldout")
    for start, stop in ((-1, 5), (5, 4), (0, len(stream) + 1)):
        with pytest.raises(IndexError):
            stream.read(start, stop)
