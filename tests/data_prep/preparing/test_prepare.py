"""The bytes of a dataset depend on its config and sources alone, and an interruption costs only unfinished units."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.documents import document_hash, draw, is_heldout, normalise
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.data_prep.preparing.shards import TokenizingUnit, UnitRecord, tokenize_unit
from echo_lm.data_prep.preparing.summary import token_dtype_for
from echo_lm.data_prep.preparing.tokenizer import END_OF_TEXT
from tests.helpers.corpus import AWKWARD, jsonl_config, tree, write_documents


def counting(tokenized: list[int], stop_after: int | None = None) -> Callable[..., Iterator[UnitRecord]]:
    """An executor that notes which units it was given to tokenize, through pickle as a cluster would, and may die."""

    def map_units(
        function: Callable[[TokenizingUnit], UnitRecord], units: list[TokenizingUnit]
    ) -> Iterator[UnitRecord]:
        for unit in units:
            if function is tokenize_unit:
                if len(tokenized) == stop_after:
                    raise KeyboardInterrupt
                tokenized.append(unit.index)
            sent, sent_unit = pickle.loads(pickle.dumps((function, unit)))
            yield pickle.loads(pickle.dumps(sent(sent_unit)))

    return map_units


def backwards(function: Callable[[TokenizingUnit], UnitRecord], units: list[TokenizingUnit]) -> list[UnitRecord]:
    return [function(unit) for unit in reversed(units)]


def test_every_document_arrives_once_normalised_and_on_its_side(tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "words.jsonl", 300, seed=1)
    config = jsonl_config(tmp_path / "words.jsonl")
    dataset = Dataset.open(prepare(config, tmp_path / "data"), verify=True)
    tokenizer = dataset.tokenizer()
    separator = tokenizer.token_to_id(END_OF_TEXT)
    expected = {"train": [], "heldout": []}
    for text in map(normalise, texts):
        document = document_hash(text.encode())
        expected["heldout" if is_heldout(document, config.seed, config.heldout_fraction) else "train"].append(text)
    assert 10 < len(expected["heldout"]) < 60
    for split, documents in expected.items():
        stream = dataset.split(split)
        assert len(stream.shards) > 2, "more than one unit and shard, or the order is not tested"
        encoded = [stream.document(i) for i in range(stream.num_documents)]
        assert [tokenizer.decode(ids[:-1].tolist()) for ids in encoded] == documents
        assert all(ids[-1] == separator and separator not in ids[:-1] for ids in encoded)
        assert stream.text_bytes == sum(len(text.encode()) for text in documents)
    record = dataset.manifest.sources[0]
    assert (record.documents, record.bytes) == (len(texts), sum(len(normalise(text).encode()) for text in texts))


def test_units_in_any_order_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    tokenized: list[int] = []
    first = prepare(jsonl_config(corpus), tmp_path / "a", map_units=counting(tokenized))
    second = prepare(jsonl_config(corpus), tmp_path / "b", map_units=backwards)
    assert len(tokenized) >= 4
    assert tree(first) == tree(second)


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_an_interrupted_run_goes_on_with_the_missing_units(corpus: Path, tmp_path: Path, stop_after: int) -> None:
    undisturbed = prepare(jsonl_config(corpus), tmp_path / "a")
    before: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        prepare(jsonl_config(corpus), tmp_path / "b", map_units=counting(before, stop_after))
    assert not (tmp_path / "b/corpus/manifest.json").exists()
    with pytest.raises(Exception, match=r"no manifest\.json"):
        Dataset.open(tmp_path / "b/corpus")
    after: list[int] = []
    resumed = prepare(jsonl_config(corpus), tmp_path / "b", map_units=counting(after))
    assert len(before) == stop_after
    assert sorted(before + after) == list(range(len(before) + len(after)))
    assert tree(resumed) == tree(undisturbed)


@pytest.mark.parametrize("deleted", ["train-00001-000.bin", "train-00001-000.docs.npy"])
def test_a_finished_unit_whose_shard_is_gone_is_done_again(corpus: Path, tmp_path: Path, deleted: str) -> None:
    undisturbed = prepare(jsonl_config(corpus), tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        prepare(jsonl_config(corpus), tmp_path / "b", map_units=counting([], 2))
    (tmp_path / "b/corpus" / deleted).unlink()
    after: list[int] = []
    resumed = prepare(jsonl_config(corpus), tmp_path / "b", map_units=counting(after))
    assert after[0] == 1
    assert 0 not in after
    assert tree(resumed) == tree(undisturbed)


def test_a_killed_process_leaves_a_folder_that_is_finished_later(corpus: Path, tmp_path: Path) -> None:
    config = jsonl_config(corpus)
    undisturbed = prepare(config, tmp_path / "a")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    # The process waits after its second unit, so that the kill finds it in the middle, holding the lock.
    script = f"""
import time
from pathlib import Path
from echo_lm.data_prep.config import DatasetConfig
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.data_prep.preparing.shards import TokenizingUnit
def slow(function, units):
    for unit in units:
        if isinstance(unit, TokenizingUnit) and unit.index == 2:
            Path({str(tmp_path / "halfway")!r}).touch()
            time.sleep(600)
        yield function(unit)
config = DatasetConfig.model_validate_json(Path({str(tmp_path / "config.json")!r}).read_text())
prepare(config, Path({str(tmp_path / "b")!r}), map_units=slow)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "halfway").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(Exception, match="is being prepared by another process"):
            prepare(config, tmp_path / "b")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    tokenized: list[int] = []
    resumed = prepare(config, tmp_path / "b", map_units=counting(tokenized))
    assert tokenized[0] == 2
    assert tree(resumed) == tree(undisturbed)


def test_a_complete_folder_is_returned_untouched(corpus: Path, tmp_path: Path) -> None:
    folder = prepare(jsonl_config(corpus), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    def never(function: object, units: object) -> list:
        raise AssertionError("a complete dataset was worked on")

    assert prepare(jsonl_config(corpus), tmp_path, map_units=never) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_units_of_another_tokenizer_do_not_count_as_finished(corpus: Path, tmp_path: Path) -> None:
    other = prepare(jsonl_config(corpus, tokenizer=TokenizerConfig(vocab_size=440)), tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        prepare(jsonl_config(corpus), tmp_path / "b", map_units=counting([], 2))
    (tmp_path / "b/corpus/tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    after: list[int] = []
    dataset = Dataset.open(prepare(jsonl_config(corpus), tmp_path / "b", map_units=counting(after)), verify=True)
    assert after[:2] == [0, 1]
    assert dataset.split("train").tokens.max() < 440


def test_only_what_readers_need_is_left(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/.train-00000-000.bin.1.tmp").write_text("of a worker that was killed")
    folder = prepare(jsonl_config(corpus), tmp_path)
    shards = Dataset.open(folder).manifest.shards
    expected = {"manifest.json", "tokenizer.json", "overlap.json", "inputs.jsonl"}
    expected |= {name for shard in shards for name in (shard.file, shard.documents_file)}
    assert {path.name for path in folder.iterdir()} == expected


def test_the_split_of_a_document_outlives_new_sources_and_orders(corpus: Path, tmp_path: Path) -> None:
    write_documents(tmp_path / "more.jsonl", 100, seed=2, awkward=[])
    more = SourceConfig(kind="jsonl", name="more", paths=(str(tmp_path / "more.jsonl"),))
    single = jsonl_config(corpus)
    both = jsonl_config(corpus, name="both", sources=(more, *single.sources))

    def heldout(config: DatasetConfig) -> list[str]:
        dataset = Dataset.open(prepare(config, tmp_path / "data"))
        stream, tokenizer = dataset.split("heldout", "words"), dataset.tokenizer()
        return [tokenizer.decode(stream.document(i).tolist()) for i in range(stream.num_documents)]

    assert len(heldout(single)) > 10
    assert heldout(single) == heldout(both)


def test_a_seed_chooses_another_split() -> None:
    texts = [document_hash(f"document {i}".encode()) for i in range(2_000)]
    first, second = ({text for text in texts if is_heldout(text, seed, 0.1)} for seed in (0, 1))
    assert 140 < len(first) < 260
    assert len(first & second) < 50
    draws = [draw(text, 0, "tokenizer") for text in first]
    assert 0.35 < sum(draws) / len(draws) < 0.65, "the tokenizer's sample does not depend on the split"


def test_limits_count_documents_across_units(corpus: Path, tmp_path: Path) -> None:
    source = SourceConfig(kind="jsonl", paths=(str(corpus),), limit_documents=123)
    dataset = Dataset.open(prepare(jsonl_config(corpus, sources=(source,)), tmp_path))
    assert dataset.manifest.sources[0].documents == 123


def test_progress_is_reported_from_start_to_end(corpus: Path, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    prepare(jsonl_config(corpus), tmp_path, on_progress=lambda *report: reports.append(report))
    stages = [stage for stage, _, _ in reports]
    assert sorted(set(stages), key=stages.index) == ["sources", "clean", "tokenizer", "tokenize"]
    units = [(done, total) for stage, done, total in reports if stage == "tokenize"]
    assert units == [(i, units[0][1]) for i in range(units[0][1] + 1)]


def test_a_large_vocabulary_takes_four_bytes_a_token(corpus: Path, tmp_path: Path, dataset: Dataset) -> None:
    assert dataset.manifest.dtype == "uint16"
    assert [token_dtype_for(size) for size in (65_536, 65_537)] == ["uint16", "uint32"]


def test_the_manifest_tells_where_the_text_came_from(dataset: Dataset, corpus: Path) -> None:
    manifest = json.loads((dataset.folder / "manifest.json").read_text())
    assert manifest["config"] == jsonl_config(corpus).model_dump(mode="json")
    assert manifest["sources"][0]["licence"]
    assert manifest["vocab_size"] == dataset.tokenizer().get_vocab_size() == 450
    assert sum(shard["documents"] for shard in manifest["shards"]) == 300 == manifest["sources"][0]["documents"]


def test_awkward_text_is_in_the_corpus(corpus: Path) -> None:
    """The corpus must hold what the tests above claim to cover."""
    lines = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    assert lines[-len(AWKWARD) :] == AWKWARD
    assert normalise(AWKWARD[0]) == "\u00e9t\u00e9 \u200b zero width"
