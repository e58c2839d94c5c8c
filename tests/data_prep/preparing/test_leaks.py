"""Held-out text does not come back in training by a newline, and what is the same but for that is counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from echo_lm.data_prep.config import OverlapConfig
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.loading.verify import equal_documents, verify
from echo_lm.data_prep.preparing.documents import document_hash, is_heldout
from echo_lm.data_prep.preparing.ngrams import word_runs
from tests.helpers.corpus import prepared, texts_of, write_lines

HELDOUT = 0.2
SHORT = [f"short document {i}" for i in range(300)]


def is_held(text: str) -> bool:
    return is_heldout(document_hash(text.encode()), 0, HELDOUT)


def dataset_of(root: Path, variants: list[str], action: str) -> Dataset:
    path = write_lines(root / "in.jsonl", [*SHORT, *variants])
    overlap = OverlapConfig(action=action)
    return prepared(root, "jsonl", path, dataset={"overlap": overlap, "name": action, "unit_bytes": 2_000})


@pytest.mark.parametrize(
    "change", [lambda text: text + "\n", str.upper, lambda text: text.replace(" ", ", "), lambda text: f"  {text}!"]
)
def test_short_documents_that_differ_by_little_are_compared_whole(tmp_path: Path, change) -> None:
    variants = [change(text) for text in SHORT]
    leaked = [(a, b) for a, b in zip(SHORT, variants, strict=True) if is_held(a) != is_held(b)]
    assert len(leaked) > 50
    reported = dataset_of(tmp_path, variants, "report")
    (overlap,) = reported.manifest.overlaps
    assert (overlap.against, overlap.documents) == ("heldout", len(leaked))
    assert equal_documents(reported.folder, verify(reported.folder)) == len(leaked)
    examples = json.loads((reported.folder / "overlap.json").read_text())["overlaps"][0]["examples"]
    assert "short document" in examples[0]["words"].lower()
    dropped = dataset_of(tmp_path, variants, "drop")
    training = {text if not is_held(text) else None for text in texts_of(dropped)} - {None}
    heldout = {text for text in texts_of(dropped) if is_held(text)}
    plain = [
        {tuple(text.lower().replace(",", "").strip(" !\n").split()) for text in part} for part in (training, heldout)
    ]
    assert plain[0].isdisjoint(plain[1])
    assert equal_documents(dropped.folder, dropped.manifest) == 0
    record = dropped.manifest.sources[0]
    assert record.overlapping == len(leaked)
    assert record.documents + record.overlapping + record.duplicates == record.records


def test_documents_of_thirteen_words_share_runs_as_before(tmp_path: Path) -> None:
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]
    runs, owners = word_runs([" ".join(words).encode(), " ".join([*words, "m"]).encode()], 13, whole_if_shorter=True)
    assert owners.tolist() == [0, 1]
    assert np.array_equal(word_runs([" ".join([*words, "m"]).encode()], 13)[0], runs[1:])


def test_a_short_document_is_no_run_of_a_long_one() -> None:
    texts = [b"one two three", b"one two three four five", b"ONE two, three!", b"...", b"two three"]
    runs, owners = word_runs(texts, 4, whole_if_shorter=True)
    assert owners.tolist() == [0, 1, 1, 2, 4]
    assert runs[0] == runs[3]
    assert len({runs[0], runs[1], runs[2], runs[4]}) == 4


def test_a_dataset_without_the_check_is_still_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [*SHORT, *(text + "\n" for text in SHORT)])
    dataset = prepared(tmp_path, "jsonl", path)
    assert dataset.manifest.overlaps == ()
    assert equal_documents(dataset.folder, dataset.manifest) > 50
