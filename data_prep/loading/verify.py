"""Verification of a finished dataset by reading all of its files."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...models.common.errors import UserError
from ..preparing.manifest import Manifest, Split, check_files, read_manifest
from ..preparing.ngrams import split_words
from ..preparing.tokenizer import end_of_text
from .dataset import Dataset

SHORT_TOKENS, BATCH = 256, 1024
REMEDY = "delete the dataset's folder and prepare it again"


def verify(folder: Path) -> Manifest:
    """Check all hashes, that all ids are in the vocabulary, that separators are exactly at the ends of documents, and that no
    document is in both splits.

    Raises:
        UserError: names the first file that is missing or wrong, what was expected, and the remedy.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest, hashes=True)
    dataset = Dataset.open(folder)
    separator = end_of_text(dataset.tokenizer())
    heldout: set[bytes] = set()
    for shard in sorted(manifest.shards, key=lambda shard: shard.split):  # heldout comes before train
        tokens = np.fromfile(folder / shard.file, dtype=manifest.token_dtype)
        offsets = np.load(folder / shard.documents_file)
        if tokens.max(initial=0) >= manifest.vocab_size:
            raise UserError(f"{folder / shard.file} has ids beyond the vocabulary of {manifest.vocab_size}: {REMEDY}")
        if not np.array_equal(np.flatnonzero(tokens == separator) + 1, offsets[1:]):
            raise UserError(f"{folder / shard.file}: documents do not end where {shard.documents_file} says: {REMEDY}")
        for start, stop in pairwise(offsets):
            digest = hashlib.blake2b(tokens[start:stop].tobytes(), digest_size=16).digest()
            if shard.split == "heldout":
                heldout.add(digest)
            elif digest in heldout:
                raise UserError(f"{folder / shard.file} holds a document that is held out: {REMEDY}")
    return manifest


def equal_documents(folder: Path, manifest: Manifest) -> int:
    """The number of training documents whose words, case and punctuation aside, are those of a held-out document.

    Only documents of up to `SHORT_TOKENS` tokens are compared: longer ones share runs of words, which the overlap check
    counts.
    """
    dataset = Dataset.open(folder)
    tokenizer = dataset.tokenizer()

    def keys(split: Split) -> Iterator[bytes]:
        for shard in manifest.of_split(split):
            tokens = np.memmap(folder / shard.file, dtype=manifest.token_dtype, mode="r")
            offsets = np.load(folder / shard.documents_file)
            short = np.flatnonzero(np.diff(offsets) <= SHORT_TOKENS)
            for i in range(0, len(short), BATCH):
                batch = [tokens[offsets[j] : offsets[j + 1] - 1].tolist() for j in short[i : i + BATCH]]
                for text in tokenizer.decode_batch(batch, skip_special_tokens=False):
                    words = b" ".join(split_words(text.encode("utf-8")))
                    yield hashlib.blake2b(words or text.strip().encode("utf-8"), digest_size=16).digest()

    heldout = set(keys("heldout"))
    return sum(key in heldout for key in keys("train"))
