"""Bits per byte and perplexity of a model on held-out text, with baselines on the same tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from ...data_prep.loading.batch import Batch
from ...data_prep.loading.dataset import Dataset, TokenStream
from ...data_prep.recall import seeded_generator
from ...models import language_model_loss
from ...models.common.errors import UserError
from ..scores import bits_per_byte, gzip_bits_per_byte, perplexity, unigram_nats

READ_TOKENS = 1 << 22  # how much of the training split is in memory at once while its tokens are counted


@dataclass(frozen=True)
class HeldoutText:
    """Held-out documents, concatenated.

    Attributes:
        tokens: int64 `[n]`; the last document may be cut.
        starts: int64; positions where documents begin, 0 first.
    """

    tokens: np.ndarray
    starts: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """bool `[n]`: all but the first token of each document, which nothing predicts."""
        scored = np.ones(len(self.tokens), dtype=bool)
        scored[self.starts] = False
        return scored


def heldout_text(stream: TokenStream, *, tokens: int, seed: int) -> HeldoutText:
    """Documents drawn without replacement until there are `tokens` tokens, or all of them, in the stream's order.

    Raises:
        UserError: the split is empty.
    """
    if stream.num_tokens < 2:
        raise UserError("the dataset holds no held-out text: raise heldout_fraction and prepare it under another name")
    offsets = stream.document_offsets
    order = seeded_generator("evaluation", "heldout-documents", seed).permutation(stream.num_documents)
    enough = int(np.searchsorted(np.cumsum(np.diff(offsets)[order]), tokens)) + 1
    documents = [stream.document(index) for index in np.sort(order[:enough])]
    starts = np.cumsum([0, *(len(document) for document in documents[:-1])])
    text = np.concatenate(documents)[:tokens]
    return HeldoutText(text, starts[starts < len(text)])


def text_batches(text: HeldoutText, *, sequence_length: int, batch_tokens: int) -> Iterator[Batch]:
    """Split the text into rows of `sequence_length` tokens, each read without the rows before it; a row also predicts the first
    token of the next.

    So each token but the documents' first ones is predicted once, from what precedes it in its document and its row.
    """
    windows = -(-(len(text.tokens) - 1) // sequence_length)
    inputs = np.zeros(windows * sequence_length, dtype=np.int64)
    labels, loss_mask = np.zeros_like(inputs), np.zeros(len(inputs), dtype=np.float32)
    inputs[: len(text.tokens) - 1] = text.tokens[:-1]
    labels[: len(text.tokens) - 1] = text.tokens[1:]
    loss_mask[: len(text.tokens) - 1] = text.scored[1:]
    size = max(1, batch_tokens // sequence_length) * sequence_length
    for first in range(0, len(inputs), size):
        stop = min(first + size, len(inputs))
        inside = text.starts[(text.starts >= first) & (text.starts < stop)] - first
        borders = np.union1d(inside, np.arange(0, stop - first + 1, sequence_length))
        tensors = [torch.from_numpy(array[first:stop]) for array in (inputs, labels, loss_mask)]
        rows = [tensor.view(-1, sequence_length) for tensor in tensors]
        cu_seqlens = torch.from_numpy(borders.astype(np.int32))
        yield Batch(*rows, cu_seqlens=cu_seqlens, is_recall=torch.zeros(len(rows[0]), dtype=torch.bool))


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each token of a byte-level BPE stands for; none for special tokens.

    Raises:
        UserError: the tokenizer is not byte-level, so its tokens have no fixed bytes.
    """
    byte_of = _byte_alphabet()
    special = tokenizer.get_added_tokens_decoder()
    texts = []
    for token in range(tokenizer.get_vocab_size()):
        name = "" if token in special else tokenizer.id_to_token(token)
        assert name is not None  # ids below the vocabulary's size have tokens
        if any(character not in byte_of for character in name):
            raise UserError(f"token {name!r} of the tokenizer is no byte sequence: bits per byte need a byte-level BPE")
        texts.append(bytes(byte_of[character] for character in name))
    return texts


@torch.inference_mode()
def evaluate_language(
    model: nn.Module,
    dataset: Dataset,
    *,
    tokens: int,
    sequence_length: int,
    batch_tokens: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    source: str | None = None,
    parts: list[tuple[float, int]] | None = None,
) -> dict[str, float]:
    """Bits per byte and perplexity on held-out documents, and the baselines.

    Numerator and denominator cover the same tokens: all but the first of each document; a separator costs bits and
    holds no byte. The unigram model is fitted on the training split and scored on exactly these tokens; gzip
    compresses the text of the documents as one stream.

    Args:
        model: maps tokens int64 `[B, T]` and `cu_seqlens` to logits `[B, T, V]`.
        tokens: of the documents in all, in rows of `sequence_length`.
        source: documents of this source only, the unigram model's too.
        parts: gets nats and bytes of each batch appended.

    Returns:
        `bits_per_byte`, `perplexity` (per token), `unigram_bits_per_byte`, `gzip_bits_per_byte`, `tokens` (scored),
        `bytes` (of the scored tokens), `documents`.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    text = heldout_text(dataset.split("heldout", source), tokens=tokens, seed=seed)
    texts = token_texts(dataset.tokenizer())
    labels = text.tokens[text.scored]
    lengths = np.array([len(item) for item in texts])
    scored_bytes = int(lengths[labels].sum())

    nats = 0.0
    for batch in text_batches(text, sequence_length=sequence_length, batch_tokens=batch_tokens):
        part_bytes = int(lengths[batch.labels[batch.loss_mask > 0].numpy()].sum())
        batch = batch.to(device)
        total, _ = language_model_loss(model(batch.tokens, cu_seqlens=batch.cu_seqlens), batch.labels, batch.loss_mask)
        nats += float(total)
        if parts is not None:
            parts.append((float(total), part_bytes))
    if not np.isfinite(perplexity(nats, len(labels))):
        raise FloatingPointError("held-out text")

    unigram = unigram_nats(_token_counts(dataset.split("train", source), len(texts)), labels)
    return {
        "bits_per_byte": bits_per_byte(nats, scored_bytes),
        "perplexity": perplexity(nats, len(labels)),
        "unigram_bits_per_byte": bits_per_byte(unigram, scored_bytes),
        "gzip_bits_per_byte": gzip_bits_per_byte(b"".join(texts[token] for token in text.tokens)),
        "tokens": len(labels),
        "bytes": scored_bytes,
        "documents": len(text.starts),
    }


def _token_counts(stream: TokenStream, vocab_size: int) -> np.ndarray:
    counts = np.zeros(vocab_size, dtype=np.int64)
    for first in range(0, stream.num_tokens, READ_TOKENS):
        counts += np.bincount(stream.read(first, min(first + READ_TOKENS, stream.num_tokens)), minlength=vocab_size)
    return counts


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes as: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
