"""Compression is recognised by the first bytes; damage, cuts and huge ratios cost neither other files nor time."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from echo_lm.data_prep.formats.records import Piece
from echo_lm.data_prep.formats.streams import compression_of, open_piece
from tests.helpers.corpus import faults_of, prepared, texts_of, write_lines

TEXTS = [f"document {i} of many" for i in range(400)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
PACK = {
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


def read(path: Path) -> bytes:
    with open_piece(Piece(path=str(path), start=0, stop=path.stat().st_size)) as stream:
        return stream.read()


@pytest.mark.parametrize("name", ["a.jsonl", "a.GZ", "a.xz", "a.bz2", "abc"])
@pytest.mark.parametrize("compression", PACK)
def test_whatever_the_name(tmp_path: Path, name: str, compression: str) -> None:
    packed = PACK[compression](LINES[:1000]) + PACK[compression](LINES[1000:])  # two frames
    (tmp_path / name).write_bytes(packed)
    assert compression_of(packed[:16]) == compression
    assert read(tmp_path / name) == LINES


def test_what_is_called_gz_but_is_plain(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(LINES)
    assert read(tmp_path / "a.gz") == LINES
    (tmp_path / "b.gz").write_bytes(b"\xef\xbb\xbf" + LINES)
    assert read(tmp_path / "b.gz") == LINES, "without the byte order mark"


def test_text_that_begins_like_a_magic_number_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("BZh9 is how bzip2 files begin")
    assert read(tmp_path / "a.txt").startswith(b"BZh9 is")


@pytest.mark.parametrize(
    ("head", "remedy"),
    [
        (b"PK\x03\x04\n\n", "a zip archive: unpack it"),
        (b"PAR1\n\n", "use kind parquet"),
        ("text".encode("utf-16"), "convert it to UTF-8"),
        (gzip.compress(b"PAR1" + b"\0" * 50, mtime=0), "use kind parquet"),
    ],
)
def test_files_of_another_format_are_one_fault(tmp_path: Path, head: bytes, remedy: str) -> None:
    write_lines(tmp_path / "in/a.jsonl", TEXTS)
    (tmp_path / "in/b.jsonl").write_bytes(head)
    dataset = prepared(tmp_path, "jsonl", tmp_path / "in")
    (fault,) = faults_of(dataset)
    assert fault.file.endswith("b.jsonl")
    assert remedy in fault.reason
    assert len(texts_of(dataset)) == len(TEXTS)


def damaged(packed: bytes) -> bytes:
    middle = len(packed) // 2
    return packed[:middle] + b"\xff" * 60 + packed[middle + 60 :]


@pytest.mark.parametrize("damage", [damaged, lambda packed: packed[:-9]], ids=["damaged", "cut"])
@pytest.mark.parametrize("compression", PACK)
def test_a_damaged_file_is_named_with_its_last_good_line(tmp_path: Path, compression: str, damage) -> None:
    write_lines(tmp_path / "in/a.jsonl", TEXTS)
    other = b"".join(json.dumps({"text": f"another {i}"}).encode() + b"\n" for i in range(3_000))
    (tmp_path / "in/b.jsonl").write_bytes(damage(PACK[compression](other)))
    dataset = prepared(tmp_path, "jsonl", tmp_path / "in")
    last = faults_of(dataset)[-1]
    assert last.file.endswith("b.jsonl")
    assert last.lost_bytes
    assert "cannot be read on" in last.reason
    record = dataset.manifest.sources[0]
    read_lines = record.records - len(TEXTS) - 1
    assert last.line == max(read_lines, 1)
    assert ("rest unknown" if read_lines else "nothing of it was read") in last.reason
    assert record.documents + record.quarantined + record.duplicates == record.records


def test_a_gzip_file_of_an_invalid_block(tmp_path: Path) -> None:
    """zlib's own error, which is none of the errors of files."""
    write_lines(tmp_path / "in/a.jsonl", TEXTS)
    packed = bytearray(gzip.compress(LINES))
    packed[10] = 0x07  # a block of type 3
    (tmp_path / "in/b.jsonl").write_bytes(packed)
    (fault,) = faults_of(prepared(tmp_path, "jsonl", tmp_path / "in"))
    assert "invalid block type" in fault.reason


def test_nothing_of_a_file_with_a_wrong_checksum_is_used(tmp_path: Path) -> None:
    """A flipped bit of stored text still is JSON; only the checksum at the end tells."""
    write_lines(tmp_path / "in/a.jsonl", TEXTS)
    packed = gzip.compress(LINES.replace(b"document", b"something"), compresslevel=0)
    (tmp_path / "in/b.jsonl").write_bytes(packed.replace(b"something 7 ", b"something 8 "))
    dataset = prepared(tmp_path, "jsonl", tmp_path / "in")
    assert texts_of(dataset) == sorted(TEXTS)
    (fault,) = faults_of(dataset)
    assert "CRC check failed" in fault.reason


@pytest.mark.parametrize("cut", [5, 12, 40, -1, -2, -5])
def test_a_zstd_file_that_is_cut_anywhere_is_not_complete(tmp_path: Path, cut: int) -> None:
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
    for data in (packed, packed + packed, b"\x50\x2a\x4d\x18\x03\0\0\0abc" + packed):
        (tmp_path / "a").write_bytes(data)
        assert len(read(tmp_path / "a")) in (len(LINES), 2 * len(LINES))
        (tmp_path / "a").write_bytes(data[: len(data) - len(packed)] + packed[:cut])
        with pytest.raises((EOFError, zstandard.ZstdError)):
            read(tmp_path / "a")


@pytest.mark.parametrize("compression", PACK)
def test_very_repetitive_data_is_read_in_linear_time_and_bounded_memory(tmp_path: Path, compression: str) -> None:
    """105 MB, of zstd in 10 KB: a line that is too long, then one that is not."""
    data = b'{"text": "' + b"a" * 105_000_000 + b'"}\n' + json.dumps({"text": "short"}).encode() + b"\n"
    write_lines(tmp_path / "in/a.jsonl", TEXTS)
    (tmp_path / "in/b").write_bytes(PACK[compression](data))
    del data
    started = time.monotonic()
    dataset = prepared(tmp_path, "jsonl", tmp_path / "in")
    assert time.monotonic() - started < 20
    assert [(fault.line, "longer than" in fault.reason) for fault in faults_of(dataset)] == [(1, True)]
    assert "short" in texts_of(dataset)


def test_memory_of_a_bomb(tmp_path: Path) -> None:
    """Two gigabytes in 70 KB, read in a process of its own."""
    chunk = b"a" * 2**20
    with open(tmp_path / "bomb", "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as stream:
        for _ in range(2_000):
            stream.write(chunk)
    code = (
        "import sys, re; from echo_lm.data_prep.formats.streams import *\n"
        "path = sys.argv[1]\n"
        "with open_piece(Piece(path=path, start=0, stop=1)) as stream:\n"
        "    total = sum(len(data) for data in iter(lambda: stream.read(2**20), b''))\n"
        "print(total, re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb")], capture_output=True, text=True, check=True
    )
    total, kilobytes = map(int, out.stdout.split())
    assert total == 2_000 * 2**20
    assert kilobytes < 400_000
