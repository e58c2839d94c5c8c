"""Held-out text: every token scored once, from its own document, and the bytes counted exactly."""

import gzip
import math

import numpy as np
import pytest
import torch
from torch import nn

from echo_lm.data_prep.loading.dataset import TokenStream
from echo_lm.data_prep.preparing.tokenizer import END_OF_TEXT
from echo_lm.evals.measurements.language import evaluate_language, heldout_text, text_batches, token_texts
from echo_lm.models.common.errors import UserError


class Bigram(nn.Module):
    """Logits that depend on the token before, through a sweep; remembers the batches it saw."""

    def __init__(self, sweep: torch.Tensor):
        super().__init__()
        self.sweep = sweep
        self.seen = []

    def forward(self, tokens: torch.Tensor, *, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
        self.seen.append((tokens, cu_seqlens))
        return self.sweep[tokens]


@pytest.fixture
def sweep(dataset) -> torch.Tensor:
    size = dataset.manifest.vocab_size
    return torch.randn(size, size, generator=torch.Generator().manual_seed(0))


def documents_of(dataset, text) -> list[np.ndarray]:
    return np.split(text.tokens, text.starts[1:])


def test_the_scores_are_those_of_a_document_by_document_loop(dataset, sweep):
    """Rows, padding and borders leave no trace in the numbers."""
    text = heldout_text(dataset.split("heldout"), tokens=700, seed=0)
    log_probability = torch.log_softmax(sweep.double(), -1).numpy()
    nats = texts = scored = 0
    tokenizer = dataset.tokenizer()
    for document in documents_of(dataset, text):
        nats -= log_probability[document[:-1], document[1:]].sum()
        scored += len(document) - 1
        # The same bytes by another way: what is lost when the first token is cut off.
        texts += len(b"".join(token_texts(tokenizer)[token] for token in document[1:]))
    parts = []
    found = evaluate_language(Bigram(sweep), dataset, tokens=700, sequence_length=32, batch_tokens=100, parts=parts)
    assert (len(parts), sum(size for _, size in parts)) == (math.ceil(699 / 32 / 3), found["bytes"])
    assert sum(part for part, _ in parts) == pytest.approx(nats, rel=1e-5)
    assert found["tokens"] == scored
    assert found["bytes"] == texts
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / texts, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / scored), rel=1e-5)
    assert found["documents"] == len(text.starts)


def test_a_real_model_gives_the_same_in_rows_as_document_by_document(dataset, model_folder):
    """Documents shorter than a row, so that only borders separate them: a border that leaks changes the numbers."""
    from echo_lm.models import from_pretrained

    model = from_pretrained(model_folder).double()
    found = evaluate_language(model, dataset, tokens=400, sequence_length=400, batch_tokens=400)
    text = heldout_text(dataset.split("heldout"), tokens=400, seed=0)
    assert len(text.starts) > 3
    nats = 0.0
    with torch.inference_mode():
        for document in documents_of(dataset, text):
            tokens = torch.from_numpy(document)[None]
            logits = model(tokens[:, :-1])
            nats += float(nn.functional.cross_entropy(logits[0], tokens[0, 1:], reduction="sum"))
    assert found["perplexity"] == pytest.approx(math.exp(nats / found["tokens"]), rel=1e-5)


def test_borders_are_row_starts_and_document_starts(dataset):
    text = heldout_text(dataset.split("heldout"), tokens=300, seed=0)
    first, *others = text_batches(text, sequence_length=32, batch_tokens=96)
    assert first.tokens.shape == (3, 32)
    starts = {int(start) for start in text.starts if start < 96}
    assert first.cu_seqlens.tolist() == sorted({0, 32, 64, 96} | starts)
    assert len(starts) > 1
    assert first.cu_seqlens.dtype == torch.int32
    assert sum(float(batch.loss_mask.sum()) for batch in (first, *others)) == text.scored.sum()
    assert (first.labels.flatten()[:95] == first.tokens.flatten()[1:]).all()


def test_the_same_seed_draws_the_same_documents_and_the_cap_holds(dataset):
    stream = dataset.split("heldout")
    text = heldout_text(stream, tokens=300, seed=0)
    assert len(text.tokens) == 300
    assert np.array_equal(text.tokens, heldout_text(stream, tokens=300, seed=0).tokens)
    assert not np.array_equal(text.tokens, heldout_text(stream, tokens=300, seed=1).tokens)
    whole = heldout_text(stream, tokens=10**9, seed=0)
    assert np.array_equal(whole.tokens, stream.read(0, stream.num_tokens))
    assert np.array_equal(whole.starts, stream.document_offsets[:-1])


def test_the_bytes_of_tokens_are_those_of_the_text(dataset):
    tokenizer = dataset.tokenizer()
    texts = token_texts(tokenizer)
    sample = "Koopman naïve 記憶 \t\n é\x00 🙂"
    assert b"".join(texts[token] for token in tokenizer.encode(sample).ids) == sample.encode()
    assert texts[tokenizer.token_to_id(END_OF_TEXT)] == b""
    stream = dataset.split("heldout")
    assert sum(len(texts[token]) for token in stream.tokens) == stream.text_bytes


def test_a_tokenizer_without_bytes_is_refused():
    from tokenizers import Tokenizer, models

    with pytest.raises(UserError, match="byte-level"):
        token_texts(Tokenizer(models.WordLevel({"a word": 0}, unk_token="a word")))


def test_the_baselines_see_the_same_text(dataset, sweep):
    """Unigram: counted here one token at a time; gzip: on the text that the tokenizer decodes."""
    found = evaluate_language(Bigram(sweep), dataset, tokens=10**6, sequence_length=64, batch_tokens=4096)
    counts = dict.fromkeys(range(dataset.manifest.vocab_size), 1)
    train = dataset.split("train")
    for token in train.read(0, train.num_tokens).tolist():
        counts[token] += 1
    total = sum(counts.values())
    stream = dataset.split("heldout")
    bits = scored_bytes = 0
    text = ""
    tokenizer = dataset.tokenizer()
    texts = token_texts(tokenizer)
    for index in range(stream.num_documents):
        document = stream.document(index)
        bits -= sum(math.log2(counts[token] / total) for token in document[1:].tolist())
        text += tokenizer.decode(document.tolist(), skip_special_tokens=True)
        scored_bytes += sum(len(texts[token]) for token in document[1:])
    assert found["unigram_bits_per_byte"] == pytest.approx(bits / scored_bytes)
    assert found["gzip_bits_per_byte"] == 8 * len(gzip.compress(text.encode(), 9)) / len(text.encode())


def test_a_loss_that_is_not_finite_is_no_score(dataset, sweep):
    with pytest.raises(FloatingPointError):
        evaluate_language(Bigram(sweep * math.nan), dataset, tokens=99, sequence_length=9, batch_tokens=99)


def test_an_empty_split_is_one_clear_line(dataset):
    empty = TokenStream(dataset.folder, (), np.dtype("<u2"))
    with pytest.raises(UserError, match="no held-out text"):
        heldout_text(empty, tokens=10, seed=0)
