"""Spool files: the documents of a cleaned unit, UTF-8, concatenated and compressed, for the tokenizer."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from ...models.common.files import write_aside

LEVEL = 1  # decompresses at 1 GB/s; the files are temporary


def write_spool(path: Path, documents: Iterable[bytes]) -> None:
    """Write a spool file atomically."""
    with (
        write_aside(path) as aside,
        open(aside, "wb") as file,
        zstandard.ZstdCompressor(LEVEL).stream_writer(file) as stream,
    ):
        for document in documents:
            stream.write(document)


def read_spool(path: Path, lengths: Iterable[int]) -> Iterator[bytes]:
    """Read the documents of a spool file, given the bytes of each.

    Raises:
        EOFError: the file is shorter.
    """
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        for length in lengths:
            document = stream.read(length)
            if len(document) != length:
                raise EOFError(f"{path} is cut off")
            yield document
