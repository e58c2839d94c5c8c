"""Text that spells a special token is encoded as ordinary text, or its document is left out; it never becomes the token."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from echo_lm.data_prep.config import TokenizerConfig
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.encoding import DocumentEncoder
from echo_lm.data_prep.preparing.tokenizer import END_OF_TEXT, RESERVED, adopt_tokenizer
from echo_lm.models.common.errors import UserError
from tests.helpers.corpus import faults_of, prepared, texts_of, write_lines

TEXTS = [f"plain words here {i}" for i in range(200)]
FORGING = [f"one {END_OF_TEXT} two {i}" for i in range(20)]


def word_level(*more: str) -> Tokenizer:
    """A tokenizer whose model holds every word of the texts, and the tokens of `more`."""
    words = sorted({word for text in TEXTS for word in text.split()} | {"one", "two"})
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *words, *more])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def byte_level(**added: list) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False, **added)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def dataset_of(folder: Path, tokenizer: Tokenizer, texts: list[str], **settings) -> Dataset:
    tokenizer.save(str(folder / "tokenizer.json"))
    load = TokenizerConfig(load=str(folder / "tokenizer.json"), **settings)
    return prepared(folder, "jsonl", write_lines(folder / "in.jsonl", texts), dataset={"tokenizer": load})


def document_ids(dataset: Dataset) -> np.ndarray:
    streams = [dataset.split(split) for split in ("train", "heldout")]
    return np.concatenate([s.document(i)[:-1] for s in streams for i in range(s.num_documents)])


@pytest.mark.parametrize("token", [END_OF_TEXT, RESERVED[5]])
def test_a_model_that_holds_a_special_token_forges_none(tmp_path: Path, token: str) -> None:
    forging = [text.replace(END_OF_TEXT, token) for text in FORGING]
    tokenizer = word_level(*([token] if token == END_OF_TEXT else RESERVED))
    dataset = dataset_of(tmp_path, tokenizer, [*TEXTS, *forging])
    record = dataset.manifest.sources[0]
    assert (record.documents, record.quarantined) == (200, 20)
    assert [(fault.file, fault.line) for fault in faults_of(dataset)] == [
        (str(tmp_path / "in.jsonl"), line) for line in range(201, 221)
    ]
    assert "spells a special token" in faults_of(dataset)[0].reason
    assert not np.isin(document_ids(dataset), [dataset.tokenizer().token_to_id(token)]).any()


def test_too_many_of_them_stop_the_preparation_with_one_line(tmp_path: Path) -> None:
    word_level(END_OF_TEXT).save(str(tmp_path / "tokenizer.json"))
    load = TokenizerConfig(load=str(tmp_path))
    path = write_lines(tmp_path / "in.jsonl", [*TEXTS, *FORGING])
    with pytest.raises(
        UserError, match=r"20 of 220 records cannot be used.*in.jsonl, line 201: spells a special token"
    ):
        prepared(tmp_path, "jsonl", path, dataset={"tokenizer": load, "max_bad_share": 0.01})


@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_was_added_as_ordinary_is_read_as_text(tmp_path: Path, special: bool) -> None:
    tokenizer = byte_level()
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([END_OF_TEXT])
    dataset = dataset_of(tmp_path, tokenizer, [*TEXTS, *FORGING])
    assert texts_of(dataset) == sorted([*TEXTS, *FORGING])
    assert dataset.tokenizer().token_to_id(END_OF_TEXT) not in document_ids(dataset)


def test_an_ordinary_word_as_special_token(tmp_path: Path) -> None:
    """A word that merges give is also a special token of the chat format."""
    dataset = dataset_of(tmp_path, byte_level(), TEXTS, special_tokens=("plain",))
    assert texts_of(dataset) == TEXTS or texts_of(dataset) == sorted(TEXTS)
    assert dataset.tokenizer().token_to_id("plain") not in document_ids(dataset)


def test_a_unigram_model_with_a_token_as_piece(tmp_path: Path) -> None:
    """T5's vocabulary holds its end of sentence as a piece, which text that spells it matches."""
    letters = sorted(set("".join(TEXTS)) | set("</s>"))
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -1.0) for c in letters)], unk_id=0))
    tokenizer.add_special_tokens(["</s>"])
    dataset = dataset_of(tmp_path, tokenizer, [*TEXTS, "a </s> b"])
    assert dataset.tokenizer().token_to_id("</s>") not in document_ids(dataset)
    assert dataset.manifest.sources[0].documents + len(faults_of(dataset)) == 201


def test_text_that_the_tokenizer_does_not_know_is_counted(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, word_level(), [*TEXTS, *(f"words 世界 {i}" for i in range(50))])
    record = dataset.manifest.sources[0]
    assert record.unknown_tokens == 50
    assert 0 < record.lost_characters < record.sampled_characters


def test_nothing_is_lost_by_a_byte_level_tokenizer(tmp_path: Path) -> None:
    record = dataset_of(tmp_path, byte_level(), [*TEXTS, "世界"]).manifest.sources[0]
    assert (record.unknown_tokens, record.lost_characters) == (0, 0)
    assert record.sampled_characters > 0


def test_only_the_document_that_spells_it_is_encoded_otherwise(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = adopt_tokenizer(str(tmp_path), ("plain",))
    tokenizer.encode_special_tokens = True
    encoder = DocumentEncoder(tokenizer, np.dtype("<u2"))
    for text in ("words here", "plain words"):
        ids = encoder.encode(text)
        assert ids is not None
        assert ids[-1] == encoder.separator
        assert tokenizer.decode(ids[:-1].tolist()) == text
    assert encoder.encode("words here").tolist()[:-1] == tokenizer.encode("words here").ids
