"""Input files as decompressed streams of bytes in bounded memory; compression is recognised by the first bytes, not by the name."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, Literal, cast

import fsspec
import zstandard

from .records import Piece, UnreadableError

Compression = Literal["gzip", "zstd", "xz", "bzip2"]

HEAD_BYTES = 16
CHUNK = 2**18
LARGEST_WINDOW = 2**31  # of zstd, as `--long=31` writes it
# What damaged compressed files, and files that vanish, raise.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)

_COMPRESSIONS: tuple[tuple[str, Compression], ...] = (
    (r"\x1f\x8b", "gzip"),
    (r"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd"),  # a frame, or one to be skipped
    (r"\xfd7zXZ\x00", "xz"),
    (r"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", "bzip2"),
)
_FOREIGN = (
    (rb"PAR1", "a parquet file: use kind parquet"),
    (rb"ARROW1", "an Arrow file: use kind arrow"),
    (rb"PK\x03\x04", "a zip archive: unpack it"),
    (rb"%PDF-", "a PDF: convert it to text"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 or UTF-32: convert it to UTF-8"),
)
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)


def compression_of(head: bytes) -> Compression | None:
    """The compression of a file that begins with `head`, its first `HEAD_BYTES`; None if it is not compressed."""
    for pattern, name in _COMPRESSIONS:
        if re.match(pattern.encode("latin-1"), head, re.DOTALL):
            return name
    return None


def open_input(path: str) -> AbstractContextManager[BinaryIO]:
    """Open a file of this machine, or of the hub by its URL (`hf://...`), for reading."""
    if "://" in path:
        return cast(AbstractContextManager[BinaryIO], fsspec.open(path, "rb"))  # fsspec declares no type for `with`
    return open(path, "rb")


@contextmanager
def open_piece(piece: Piece) -> Iterator[io.BufferedReader]:
    """Open a piece as a stream of its bytes, decompressed, without a byte order mark.

    A compressed file of this machine is first read to its end for its checksums, since damage is noticed only there: nothing
    of a damaged one is used. One that is cut off is good up to the cut.

    Raises:
        READ_ERRORS: the file is damaged.
        UnreadableError: the first bytes are those of a format that holds no plain text.
    """
    with open_input(piece.path) as file:
        compression = compression_of(file.read(HEAD_BYTES))
        stream: io.BufferedReader
        if compression is None:
            file.seek(piece.start)
            stream = io.BufferedReader(_Bounded(file, piece.stop - piece.start))
        else:
            if "://" not in piece.path:
                _check_sums(file, compression)
            file.seek(0)
            stream = io.BufferedReader(_decompressed(file, compression))
        if piece.start == 0:
            head = stream.peek(HEAD_BYTES)
            refuse_foreign(head)
            if head.startswith(codecs.BOM_UTF8):
                stream.read(len(codecs.BOM_UTF8))
        yield stream


def _check_sums(file: BinaryIO, compression: Compression) -> None:
    file.seek(0)
    stream, buffer = _decompressed(file, compression), bytearray(CHUNK)
    try:
        while stream.readinto(buffer):
            pass
    except EOFError:
        pass


def refuse_foreign(head: bytes) -> None:
    """Refuse a stream that begins with the bytes of a format that holds no plain text.

    Raises:
        UnreadableError: names the format and the remedy.
    """
    for pattern, reason in _FOREIGN:
        if re.match(pattern, head):
            raise UnreadableError(f"this is {reason}")


def _decompressed(file: BinaryIO, compression: Compression) -> io.RawIOBase:
    if compression == "zstd":
        return _Zstd(file)
    if compression == "gzip":
        return _ReadOnce(gzip.GzipFile(fileobj=file))
    return _ReadOnce(lzma.LZMAFile(file) if compression == "xz" else bz2.BZ2File(file))


class _ReadOnce(io.RawIOBase):
    """A stream that gives what one read of the underlying stream gives, so that nothing before a damaged place is lost."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._stream.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Bounded(io.RawIOBase):
    """The next `remaining` bytes of a file as a stream."""

    def __init__(self, file: BinaryIO, remaining: int) -> None:
        self._file, self._remaining = file, remaining

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._file.read(min(len(buffer), self._remaining))
        self._remaining -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Zstd(io.RawIOBase):
    """A decompressed stream of zstd frames, whatever their ratio, in bounded memory.

    Raises:
        EOFError: the file ends in the middle of a frame; `zstandard`'s own reader accepts it as complete.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        self._stream = decompressor.stream_reader(file, read_across_frames=True, closefd=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._stream.readinto(buffer)
        if not count:
            _check_zstd_end(self._file)
        return count


def _check_zstd_end(file: BinaryIO) -> None:
    """Walk over the frames and blocks of a file (RFC 8878, section 3) to see whether the last one is whole."""
    size, position = file.seek(0, io.SEEK_END), 0
    cut_off = EOFError("compressed file ended before the end of its last frame")
    while position < size:
        file.seek(position)
        head = file.read(18)
        if _SKIPPABLE.match(head):
            position += 8 + int.from_bytes(head[4:8], "little")
            continue
        has_checksum = zstandard.get_frame_parameters(head).has_checksum
        position += zstandard.frame_header_size(head)
        is_last = False
        while not is_last:
            file.seek(position)
            block = file.read(3)
            if len(block) < 3:
                raise cut_off
            value = int.from_bytes(block, "little")
            is_last, is_run = bool(value & 1), value >> 1 & 3 == 1
            position += 3 + (1 if is_run else value >> 3)
        position += 4 * has_checksum
    if position > size:
        raise cut_off
