"""The tokenizer loses nothing, forges nothing, and is the same every time."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.tokenizer import (
    END_OF_TEXT,
    LONGEST_STRETCH,
    RESERVED,
    SMALLEST_VOCABULARY,
    adopt_tokenizer,
    cut_stretches,
    end_of_text,
    load_tokenizer,
    reserved_start,
    save_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from echo_lm.models.common.errors import UserError
from tests.helpers.corpus import AWKWARD

TEXTS = [f"the number {i} and the word {'abc'[i % 3] * (i % 7)}" for i in range(500)]


def test_training_twice_gives_the_same_file(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        files.append(save_tokenizer(train_tokenizer(TEXTS, 500), tmp_path / name).read_bytes())
    assert files[0] == files[1]


@settings(deadline=None)
@given(text=st.text())
def test_decoding_gives_the_text_back(dataset: Dataset, text: str) -> None:
    tokenizer = load_tokenizer(dataset.folder)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_have_the_lowest_ids() -> None:
    tokenizer = train_tokenizer(TEXTS, 450)
    assert end_of_text(tokenizer) == 0
    assert reserved_start(tokenizer) == 2
    assert [tokenizer.token_to_id(token) for token in RESERVED] == list(range(2, 130))
    assert tokenizer.get_vocab_size() == 450


def test_the_smallest_vocabulary_holds_every_byte() -> None:
    tokenizer = train_tokenizer([], SMALLEST_VOCABULARY)
    assert tokenizer.get_vocab_size() == SMALLEST_VOCABULARY
    assert tokenizer.decode(tokenizer.encode("日本\x01é").ids) == "日本\x01é"


def test_text_cannot_forge_special_tokens(dataset: Dataset) -> None:
    tokenizer = load_tokenizer(dataset.folder)
    for text in AWKWARD:
        ids = tokenizer.encode(text).ids
        assert min(ids) >= 130
        assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id(END_OF_TEXT) == 0


def test_not_our_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(Tokenizer(models.BPE()).to_str())
    with pytest.raises(UserError, match=r"has no token <\|endoftext\|>"):
        load_tokenizer(tmp_path)


def test_reserved_tokens_must_be_contiguous() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens([*RESERVED[:5], "<|else|>", *RESERVED[5:]])
    with pytest.raises(UserError, match="not contiguous"):
        reserved_start(tokenizer)


def word_level(path: Path, vocabulary: dict[str, int]) -> Path:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(
    "vocabulary",
    [
        {"a": 0, "b": 1, "c": 5, "d": 6},  # a hole that the library would number new tokens into
        {"a": 3, "b": 4},  # the lowest ids are missing
        {"a": 0, "b": 1, END_OF_TEXT: 200},  # one of ours behind a hole
    ],
)
def test_new_tokens_share_no_id_with_those_behind_a_hole(tmp_path: Path, vocabulary: dict[str, int]) -> None:
    tokenizer = adopt_tokenizer(str(word_level(tmp_path / "tokenizer.json", vocabulary)), ("<|user|>",))
    ids = tokenizer.get_vocab()
    assert {token: ids[token] for token in vocabulary} == vocabulary
    assert len(set(ids.values())) == len(ids) == max(ids.values()) + 1
    assert vocabulary_size(tokenizer) == tokenizer.get_vocab_size() == len(ids)
    assert reserved_start(tokenizer) > max(vocabulary.values())
    (tmp_path / "saved").mkdir()
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").get_vocab() == ids


def test_added_tokens_behind_a_hole_keep_their_ids(tmp_path: Path) -> None:
    path = word_level(tmp_path / "tokenizer.json", {"a": 0, "b": 1})
    values = json.loads(path.read_text())
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    values["added_tokens"] = [{"id": 7, "content": "<pad>", "special": True, **entry}]
    path.write_text(json.dumps(values))
    assert adopt_tokenizer(str(path)).token_to_id("<pad>") == 7


def test_two_tokens_with_one_id_are_refused(tmp_path: Path) -> None:
    path = word_level(tmp_path / "tokenizer.json", {"a": 0, "b": 1, "c": 2})
    path.write_text(path.read_text().replace('"c": 2', '"c": 1'))
    with pytest.raises(UserError, match="'b' and 'c' have the same id 1: renumber"):
        adopt_tokenizer(str(path))
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 3, "d": 2}, unk_token="a"))
    tokenizer.add_special_tokens([END_OF_TEXT])
    values = json.loads(tokenizer.to_str())
    values["model"]["vocab"]["d"] = 4  # where the library has put the separator
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="have the same id 4"):
        load_tokenizer(path)
    word_level(path, {"a": 0, "b": 1})
    path.write_text(path.read_text().replace('"b": 1', '"b": 1000000000'))
    with pytest.raises(UserError, match="2 tokens have ids up to 1000000000: renumber"):
        adopt_tokenizer(str(path))


@pytest.mark.parametrize(
    "stretch", [" " * 1_000_000, "ACGT" * 250_000, "日本" * 100_000, "=" * 300_000, "0123456789" * 30_000]
)
def test_a_long_unbroken_stretch_does_not_hang_the_training(stretch: str) -> None:
    started = time.monotonic()
    tokenizer = train_tokenizer([*TEXTS, f"before {stretch} after"], 500)
    assert time.monotonic() - started < 20
    assert tokenizer.decode(tokenizer.encode(stretch).ids) == stretch


def test_cutting_stretches_loses_nothing_and_changes_no_other_text() -> None:
    texts = ["a" * 5_000 + " b " + "\n" * 2_500 + "c", "word " * 1_000, "", "x" * 1_000, "y" * 1_001]
    for text in texts:
        assert "".join(cut_stretches([text])) == text
    assert list(cut_stretches(texts[1:4])) == texts[1:4]
    assert max(len(part) for part in cut_stretches(texts[:1])) < 3 * LONGEST_STRETCH


def test_a_name_of_the_hub_without_network_is_refused_at_once(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match="someone/nothing-here cannot be loaded"):
        adopt_tokenizer("someone/nothing-here")
    assert time.monotonic() - started < 10
