"""Planted copies, near-copies and overlaps are found, all of them, and nothing else is."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lm.data_prep.config import DatasetConfig, NearDuplicateConfig, OverlapConfig, SourceConfig
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.documents import document_hash, is_heldout
from echo_lm.data_prep.preparing.ngrams import RunIndex, split_words, word_runs
from echo_lm.data_prep.preparing.prepare import prepare
from tests.helpers.corpus import jsonl_config

HELDOUT = 0.2


def make_words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices("abcdefghijklmnop", k=7)) for _ in range(count)]


def write(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def config_of(path: Path, **changes) -> DatasetConfig:
    return jsonl_config(path, **{"heldout_fraction": HELDOUT, **changes})


def kept(folder: Path) -> set[str]:
    dataset = Dataset.open(folder, verify=True)
    tokenizer = dataset.tokenizer()
    streams = [dataset.split(split) for split in ("train", "heldout")]
    return {tokenizer.decode(s.document(i)[:-1].tolist()) for s in streams for i in range(s.num_documents)}


def heldout(text: str) -> bool:
    return is_heldout(document_hash(text.encode()), 0, HELDOUT)


def test_exact_copies_are_left_out_wherever_they_are(tmp_path: Path) -> None:
    generator = random.Random(1)
    documents = [" ".join(make_words(generator, 40)) for _ in range(100)]
    documents[7] = "e\u0301te\u0301 " + documents[7]
    copies = [documents[3], documents[90].replace("x", "x"), "\u00e9t\u00e9 " + documents[7].split(" ", 1)[1]]
    path = write(tmp_path / "in.jsonl", [*documents, *copies])
    folder = prepare(config_of(path, unit_bytes=3_000), tmp_path)
    record = Dataset.open(folder).manifest.sources[0]
    assert (record.documents, record.duplicates) == (100, 3)
    assert len(kept(folder)) == 100
    keeping = prepare(config_of(path, name="keeping", exact_duplicates="keep"), tmp_path)
    assert Dataset.open(keeping).manifest.sources[0].documents == 103


def changed(generator: random.Random, words: list[str], places: int) -> str:
    """A copy with `places` words replaced, so far apart that no run of five holds two of them."""
    copy = list(words)
    for i in range(places):
        copy[8 + i * (len(words) - 16) // max(places - 1, 1)] = make_words(generator, 1)[0]
    return " ".join(copy)


def jaccard(first: str, second: str) -> float:
    a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (first.split(), second.split()))
    return len(a & b) / len(a | b)


def test_near_copies_of_similarity_09_are_found_and_those_of_06_stay(tmp_path: Path) -> None:
    generator = random.Random(2)
    originals = [make_words(generator, 200) for _ in range(60)]
    near = [changed(generator, words, 2) for words in originals]
    far = [changed(generator, words, 10) for words in originals]
    documents = [" ".join(words) for words in originals]
    assert all(0.9 <= jaccard(a, b) < 0.91 for a, b in zip(documents, near, strict=True))
    assert all(0.55 < jaccard(a, b) < 0.62 for a, b in zip(documents, far, strict=True))
    path = write(tmp_path / "in.jsonl", [*documents, *far, *near])
    config = config_of(path, near_duplicates=NearDuplicateConfig(), overlap=None, unit_bytes=20_000)
    folder = prepare(config, tmp_path)
    assert kept(folder) == {*documents, *far}
    assert Dataset.open(folder).manifest.sources[0].near_duplicates == len(near)


def test_overlaps_of_13_words_are_found_and_those_of_12_are_not(tmp_path: Path) -> None:
    generator = random.Random(3)
    clean = [" ".join(make_words(generator, 50)) for _ in range(200)]
    evaluation = [" ".join(make_words(generator, 50)) for _ in range(10)]
    secret = [text for text in clean if heldout(text)]
    assert len(secret) > 20

    def plant(text: str, count: int) -> str:
        """A training document that holds `count` words of another in a row, spelt with other case and punctuation."""
        while True:
            start = generator.randint(0, 50 - count)
            stolen = ", ".join(text.split()[start : start + count]).upper()
            document = " ".join([*make_words(generator, 20), stolen + ".", *make_words(generator, 20)])
            if not heldout(document):
                return document

    planted = [plant(text, 13) for text in secret[:10]]
    of_evaluation = [plant(text, 13) for text in evaluation]
    innocent = [plant(text, 12) for text in [*secret[:10], *evaluation]]
    path = write(tmp_path / "in.jsonl", [*clean, *planted, *of_evaluation, *innocent])
    source = SourceConfig(kind="jsonl", name="exam", paths=(str(write(tmp_path / "exam.jsonl", evaluation)),))
    folders = {}
    for action in ("report", "drop"):
        overlap = OverlapConfig(evaluation=(source,), action=action)
        folders[action] = prepare(config_of(path, name=action, overlap=overlap, unit_bytes=9_000), tmp_path)
    report = json.loads((folders["report"] / "overlap.json").read_text())
    documents_by_origin = {entry["against"]: entry["documents"] for entry in report["overlaps"]}
    assert documents_by_origin == {"heldout": 10, "exam": 10}
    stolen = {
        word for entry in report["overlaps"] for example in entry["examples"] for word in example["words"].split()
    }
    assert stolen <= {word for text in [*secret, *evaluation] for word in text.split()}
    assert kept(folders["report"]) == {*clean, *planted, *of_evaluation, *innocent}
    assert kept(folders["drop"]) == {*clean, *innocent}
    assert Dataset.open(folders["drop"]).manifest.sources[0].overlapping == 20


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab \n.,", max_size=30), max_size=8), st.integers(1, 4))
def test_runs_are_those_of_a_plain_loop(documents: list[str], length: int) -> None:
    words = [split_words(text.encode()) for text in documents]
    naive = [(i, tuple(w[j : j + length])) for i, w in enumerate(words) for j in range(len(w) - length + 1)]
    runs, owners = word_runs([text.encode() for text in documents], length)
    assert owners.tolist() == [i for i, _ in naive]
    by_words: dict[tuple[bytes, ...], int] = {}
    for (_, run), value in zip(naive, runs.tolist(), strict=True):
        assert by_words.setdefault(run, value) == value
    assert len(set(by_words.values())) == len(by_words)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17, 1023, 1024, 1025, 3000])
def test_a_word_is_the_same_anywhere_and_another_with_its_last_letter(size: int) -> None:
    letters = random.Random(size).choices(b"abcdefgh", k=size)
    word, other = bytes(letters), bytes([*letters[:-1], ord("z")])
    runs, owners = word_runs([word, b"a longer beginning, " + word + b" and an end", other, word.upper()], 1)
    assert owners.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 2, 3]
    assert runs[0] == runs[4] == runs[-1] != runs[-2]


def test_looking_up_runs() -> None:
    values = np.random.default_rng(0).integers(0, 2**64, size=5_000, dtype=np.uint64)
    index = RunIndex(np.unique(values[::3]))
    positions, places = index.find(values)
    assert positions.tolist() == list(range(0, 5_000, 3))
    assert np.array_equal(index.runs[places], values[::3])
    assert len(RunIndex(np.empty(0, np.uint64)).find(values)[0]) == 0
