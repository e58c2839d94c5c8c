"""Documents of a finished unit on their way to the tokenizer: UTF-8, one after the other, compressed."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from ...models.common.files import write_aside

LEVEL = 1  # decompresses at 1 GB/s; the files live for the length of a run


def write_spool(path: Path, documents: Iterable[bytes]) -> None:
    """Write documents, completely or not at all."""
    with (
        write_aside(path) as aside,
        open(aside, "wb") as file,
        zstandard.ZstdCompressor(LEVEL).stream_writer(file) as stream,
    ):
        for document in documents:
            stream.write(document)


def read_spool(path: Path, lengths: Iterable[int]) -> Iterator[bytes]:
    """The documents again, given the bytes of each.

    Raises:
        EOFError: the file is shorter.
    """
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        for length in lengths:
            document = stream.read(length)
            if len(document) != length:
                raise EOFError(f"{path} is cut off")
            yield document
