"""Tokenization of one unit of work: documents in, its own shard files and a completion record out."""

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from ..models.errors import UserError
from ..models.files import read_json, sha256_file, sha256_json, write_aside, write_json
from .documents import is_heldout
from .manifest import ShardRecord, Split, TokenDtype, token_dtype
from .tokenizer import FILE_NAME, end_of_text, load_tokenizer
from .units import Slice, read_documents

RECORDS_FOLDER = "units"


class Unit(BaseModel):
    """Everything that a worker needs to tokenize a slice; pickles small.

    Attributes:
        folder: the dataset's folder; on a cluster, a path that every worker sees.
        index: number of the unit, part of its files' names.
        tokenizer_sha256: of the `tokenizer.json` in `folder`.
        dtype: of the token ids.
        heldout_fraction, shard_tokens, seed: as in `DatasetConfig`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    index: int
    part: Slice
    tokenizer_sha256: str
    dtype: TokenDtype
    heldout_fraction: float
    shard_tokens: int
    seed: int

    @property
    def key(self) -> str:
        """Identity of the result: the same wherever the folder lies."""
        return sha256_json(self.model_dump(mode="json", exclude={"folder"}))

    @property
    def record_path(self) -> Path:
        """The unit's completion file."""
        return self.folder / RECORDS_FOLDER / f"{self.index:05d}.json"


class UnitRecord(BaseModel):
    """What a finished unit wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    key: str
    shards: tuple[ShardRecord, ...]


def tokenize_unit(unit: Unit) -> UnitRecord:
    """Tokenize a slice and write its shards, then its completion record. Same unit, same bytes.

    Raises:
        UserError: the input cannot be read or decoded, no space left, or another tokenizer lies in the folder.
    """
    tokenizer = _tokenizer(unit.folder, unit.tokenizer_sha256)
    shards = tuple(_write_shards(unit, tokenizer))
    record = UnitRecord(index=unit.index, key=unit.key, shards=shards)
    write_json(unit.record_path, record.model_dump(mode="json"))
    return record


def finished_record(unit: Unit) -> UnitRecord | None:
    """The unit's record if it was finished, for this very input, and its files are still there."""
    if not unit.record_path.is_file():
        return None
    record = UnitRecord.model_validate(read_json(unit.record_path))
    itemsize = token_dtype(unit.dtype).itemsize
    for shard in record.shards:
        path, documents = unit.folder / shard.file, unit.folder / shard.documents_file
        if not documents.is_file() or not path.is_file() or path.stat().st_size != shard.tokens * itemsize:
            return None
    return record if record.key == unit.key else None


# One entry: a worker tokenizes many units of one dataset.
@lru_cache(maxsize=1)
def _tokenizer(folder: Path, sha256: str) -> Tokenizer:
    if sha256_file(folder / FILE_NAME) != sha256:
        raise UserError(f"{folder / FILE_NAME} changed while the dataset was prepared: delete the folder")
    return load_tokenizer(folder)


def _write_shards(unit: Unit, tokenizer: Tokenizer) -> Iterator[ShardRecord]:
    separator = end_of_text(tokenizer)
    open_shards: dict[Split, _Shard] = {"train": _Shard(unit, "train", 0), "heldout": _Shard(unit, "heldout", 0)}
    for text in read_documents(unit.part):
        split: Split = "heldout" if is_heldout(text, unit.seed, unit.heldout_fraction) else "train"
        shard = open_shards[split]
        # One call a document: a batched call is no faster and would start threads in every worker.
        shard.add([*tokenizer.encode(text, add_special_tokens=False).ids, separator], len(text.encode()))
        if shard.tokens >= unit.shard_tokens:
            yield shard.write()
            open_shards[split] = _Shard(unit, split, shard.part + 1)
    for shard in open_shards.values():
        if shard.tokens:
            yield shard.write()


class _Shard:
    """The documents of one shard, gathered in memory until it is written."""

    def __init__(self, unit: Unit, split: Split, part: int) -> None:
        self.unit = unit
        self.split: Split = split
        self.part = part
        self.dtype = token_dtype(unit.dtype)
        self.documents: list[np.ndarray] = []
        self.tokens = self.text_bytes = 0

    def add(self, ids: list[int], text_bytes: int) -> None:
        self.documents.append(np.array(ids, dtype=self.dtype))
        self.tokens += len(ids)
        self.text_bytes += text_bytes

    def write(self) -> ShardRecord:
        stem = f"{self.split}-{self.unit.index:05d}-{self.part:03d}"
        offsets = np.zeros(len(self.documents) + 1, dtype="<i8")
        np.cumsum([len(document) for document in self.documents], out=offsets[1:])
        buffer = io.BytesIO()
        np.save(buffer, offsets)
        return ShardRecord(
            file=f"{stem}.bin",
            source=self.unit.part.source,
            split=self.split,
            tokens=self.tokens,
            documents=len(self.documents),
            text_bytes=self.text_bytes,
            documents_sha256=_write_bytes(self.unit.folder / f"{stem}.docs.npy", buffer.getvalue()),
            sha256=_write_bytes(self.unit.folder / f"{stem}.bin", np.concatenate(self.documents).tobytes()),
        )


def _write_bytes(path: Path, data: bytes) -> str:
    with write_aside(path) as aside:
        aside.write_bytes(data)
        return sha256_file(aside)
