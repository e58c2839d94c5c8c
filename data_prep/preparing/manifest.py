"""The manifest of a dataset, `manifest.json`: its completion file, with contents and origins."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from ...models.common.config import Record
from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file, sha256_json, write_json
from ..config import DatasetConfig
from ..sources.files import SkippedFiles
from .tokenizer import FILE_NAME as TOKENIZER_FILE

FILE_NAME = "manifest.json"
QUARANTINE_FILE = "quarantine.jsonl"
Split = Literal["train", "heldout"]
TokenDtype = Literal["uint16", "uint32"]


class ShardRecord(Record):
    """A shard: one file of token ids, with a file of the offsets of its documents.

    Attributes:
        file: name of the `.bin`.
        tokens, documents: counts; document separators are among the tokens.
        text_bytes: UTF-8 bytes of the documents.
        sha256: of the `.bin`.
        documents_sha256: of the `.docs.npy`.
    """

    file: str
    source: str
    split: Split
    tokens: int
    documents: int
    text_bytes: int
    sha256: str
    documents_sha256: str

    @property
    def documents_file(self) -> str:
        """Name of the `.docs.npy`: int64 `[documents + 1]`, offsets in tokens."""
        return f"{Path(self.file).stem}.docs.npy"


class SourceRecord(Record):
    """A source in the manifest: its origin, and counts of used and excluded documents.

    Attributes:
        kind: the adapter that delivered it (the fallback's, if the source could not be fetched).
        origin: package and version, or dataset and revision; empty for local files.
        input_sha256: hash over the hashes of the input files; over the origin if there are none.
        records: number read, and files that cannot be opened; the sum of the counts from `quarantined` to `beyond_limit` and
            of `documents`.
        quarantined: unusable records, listed in `quarantine.jsonl`.
        filtered, duplicates, near_duplicates: excluded documents; `filtered_by` counts the filtered ones by reason.
        overlapping: training documents excluded since they share runs with held-out or evaluation text.
        beyond_limit: documents behind a limit of documents or tokens.
        unknown_tokens: tokens that stand for text which the tokenizer does not know.
        sampled_characters, lost_characters: of documents that were decoded again, and how many of them were not there.
        skipped: files that the source's patterns leave out, by pattern.
        documents, tokens, bytes: in the shards, both splits together; bytes of UTF-8.
    """

    name: str
    kind: str
    licence: str
    origin: str
    input_files: int
    input_sha256: str
    records: int
    quarantined: int
    filtered: int
    duplicates: int
    near_duplicates: int
    overlapping: int
    documents: int
    tokens: int
    bytes: int
    filtered_by: dict[str, int] = Field(default={})
    beyond_limit: int = 0
    unknown_tokens: int = 0
    sampled_characters: int = 0
    lost_characters: int = 0
    skipped: tuple[SkippedFiles, ...] = ()


class OverlapRecord(Record):
    """The number of training documents of a source that share a run of words with "heldout" or an evaluation source."""

    source: str
    against: str
    documents: int


class Manifest(Record):
    """The manifest of a dataset; `dtype` is that of the `.bin` files, little-endian."""

    version: Literal[2] = 2
    config: DatasetConfig
    config_sha256: str
    tokenizer_sha256: str
    vocab_size: int
    dtype: TokenDtype
    sources: tuple[SourceRecord, ...]
    overlaps: tuple[OverlapRecord, ...]
    quarantine_sha256: str | None
    shards: tuple[ShardRecord, ...]

    @property
    def token_dtype(self) -> np.dtype:
        """The dtype of the `.bin` files."""
        return token_dtype(self.dtype)

    def of_split(self, split: Split) -> tuple[ShardRecord, ...]:
        """The shards of a split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)


def config_sha256(config: DatasetConfig) -> str:
    """The identity of a dataset: SHA-256 of its configuration."""
    return sha256_json(config.identity_dump())


def token_dtype(name: TokenDtype) -> np.dtype:
    """The dtype of the `.bin` files: little-endian on every machine."""
    return np.dtype(name).newbyteorder("<")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a dataset's manifest atomically."""
    write_json(folder / FILE_NAME, manifest.model_dump(mode="json"))


def read_manifest(folder: Path) -> Manifest:
    """Read a dataset's manifest.

    Raises:
        UserError: there is none, or it is not one of this version.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise UserError(f"{folder} is not a prepared dataset (no {FILE_NAME}): run `echo-lm prepare` to the end first")
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not a manifest of this version ({where}: {first['msg']}): prepare again") from error


def check_files(folder: Path, manifest: Manifest, *, hashes: bool) -> None:
    """Compare the folder's files with the manifest: the tokenizer's hash and all sizes; with `hashes`, all hashes.

    Raises:
        UserError: names the first file that is missing or differs, and the remedy.
    """
    remedy = "delete the dataset's folder and prepare it again"
    tokenizer = folder / TOKENIZER_FILE
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer} is missing: {remedy}")
    _check_hash(tokenizer, manifest.tokenizer_sha256, "it does not match the data; put the original back, or " + remedy)
    quarantine = folder / QUARANTINE_FILE
    if manifest.quarantine_sha256 and not quarantine.is_file():
        raise UserError(f"{quarantine} is missing: {remedy}")
    if manifest.quarantine_sha256 and hashes:
        _check_hash(quarantine, manifest.quarantine_sha256, remedy)
    itemsize = token_dtype(manifest.dtype).itemsize
    for shard in manifest.shards:
        path, documents = folder / shard.file, folder / shard.documents_file
        for file in (path, documents):
            if not file.is_file():
                raise UserError(f"{file} is missing: {remedy}")
        if path.stat().st_size != shard.tokens * itemsize:
            raise UserError(
                f"{path} is corrupt: {path.stat().st_size} bytes, {shard.tokens * itemsize} expected: {remedy}"
            )
        if hashes:
            _check_hash(path, shard.sha256, remedy)
            _check_hash(documents, shard.documents_sha256, remedy)


def _check_hash(path: Path, expected: str, remedy: str) -> None:
    actual = sha256_file(path)
    if actual != expected:
        raise UserError(f"{path} is corrupt: sha256 {actual[:12]}, {expected[:12]} expected: {remedy}")
