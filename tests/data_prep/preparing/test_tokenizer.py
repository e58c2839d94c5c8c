"""The tokenizer loses nothing, forges nothing, and is the same every time."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.tokenizer import (
    END_OF_TEXT,
    RESERVED,
    SMALLEST_VOCABULARY,
    end_of_text,
    load_tokenizer,
    reserved_start,
    save_tokenizer,
    train_tokenizer,
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
