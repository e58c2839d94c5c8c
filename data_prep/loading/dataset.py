"""Reading of prepared datasets, whose tokens stay on disk, memory-mapped."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ...models.common.errors import UserError
from ..preparing.manifest import Manifest, ShardRecord, Split, check_files, read_manifest, token_dtype
from ..preparing.tokenizer import load_tokenizer


class TokenStream:
    """The shards of a split, or of one source in it, as one sequence of tokens and documents.

    Attributes:
        shards: their records, in order.
        num_tokens, num_documents: totals; every document's separator counts as its last token.
        text_bytes: UTF-8 bytes of the documents, separators not counted.
    """

    def __init__(self, folder: Path, shards: tuple[ShardRecord, ...], dtype: np.dtype) -> None:
        self.shards = shards
        self.num_tokens = sum(shard.tokens for shard in shards)
        self.num_documents = sum(shard.documents for shard in shards)
        self.text_bytes = sum(shard.text_bytes for shard in shards)
        self._starts = np.cumsum([0, *(shard.tokens for shard in shards)]).tolist()
        self._tokens = [np.memmap(folder / shard.file, dtype=dtype, mode="r") for shard in shards]
        self._documents = [np.load(folder / shard.documents_file, mmap_mode="r") for shard in shards]
        for shard, documents in zip(shards, self._documents, strict=True):
            if documents.shape != (shard.documents + 1,) or documents[-1] != shard.tokens:
                raise UserError(f"{folder / shard.documents_file} is corrupt: its offsets do not fit {shard.file}")

    def __len__(self) -> int:
        return self.num_tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of the stream, int64 `[stop - start]`; they may cross shards."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.num_tokens}")
        parts = [self._tokens[i][a:b] for i, a, b in self._overlaps(start, stop)]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Positions from `start` to `stop`, `stop` excluded, at which a document begins; int64, ascending."""
        starts = [np.empty(0, dtype=np.int64)]
        for i, a, b in self._overlaps(start, stop):
            offsets = self._documents[i][:-1]
            first, last = np.searchsorted(offsets, [a, b])
            starts.append(offsets[first:last] + self._starts[i])
        return np.concatenate(starts)

    def continues(self, position: int) -> bool:
        """Whether the token at `position` belongs to the same document as the token before it."""
        return position < self.num_tokens and not len(self.document_starts(position, position + 1))

    @property
    def tokens(self) -> np.ndarray:
        """All tokens: the memory-mapped file if there is one shard, else a copy; prefer `read` for training data."""
        return self._tokens[0] if len(self._tokens) == 1 else self.read(0, self.num_tokens)

    @cached_property
    def document_offsets(self) -> np.ndarray:
        """Start positions of all documents, and the end: int64 `[num_documents + 1]`, in memory."""
        return np.append(self.document_starts(0, self.num_tokens), self.num_tokens)

    def document(self, index: int) -> np.ndarray:
        """Tokens of a document, its separator included, int64."""
        start, stop = self.document_offsets[index : index + 2]
        return self.read(int(start), int(stop))

    def _overlaps(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The shards with tokens `start` to `stop`: number, start and stop position in the shard."""
        overlaps = []
        i = max(bisect_right(self._starts, start) - 1, 0)
        while i < len(self.shards) and self._starts[i] < stop:
            base = self._starts[i]
            overlaps.append((i, max(start - base, 0), min(stop, self._starts[i + 1]) - base))
            i += 1
        return overlaps


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: `Dataset.open("data/wiki")`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False) -> "Dataset":
        """Open a complete dataset. The tokenizer's hash and all sizes are always checked.

        Args:
            folder: `data/<name>`.
            verify: hash every shard too, which reads all of them.

        Raises:
            UserError: not prepared to the end, a file is missing or corrupt, or the tokenizer is not the data's.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        check_files(folder, manifest, hashes=verify)
        return cls(folder, manifest)

    def split(self, name: Split, source: str | None = None) -> TokenStream:
        """The tokens of split "train" or "heldout", of all sources or one.

        Raises:
            UserError: there is no such split or source.
        """
        if name not in ("train", "heldout"):
            raise UserError(f"{self.folder} has no split {name!r}: choose train or heldout")
        names = [record.name for record in self.manifest.sources]
        if source is not None and source not in names:
            raise UserError(f"{self.folder} has no source {source!r}: it has {', '.join(names)}")
        shards = tuple(shard for shard in self.manifest.of_split(name) if source in (None, shard.source))
        return TokenStream(self.folder, shards, token_dtype(self.manifest.dtype))

    def tokenizer(self) -> Tokenizer:
        """The dataset's tokenizer."""
        return load_tokenizer(self.folder)
