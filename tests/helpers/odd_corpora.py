"""Corpora assembled at random from good and broken parts: formats, encodings, compression, links, names, columns."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import zstandard

from echo_lm.data_prep.config import DatasetConfig, OverlapConfig, SourceConfig, TokenizerConfig

LONGEST = 3_000
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "the",
    "of",
    "<|endoftext|>",
    "<|r3|>",
    "über",
    "日本",
    "naïve",
    "12345",
    "x=y;",
    "\t",
]
NAMES = [
    "a",
    "B",
    "with space",
    "ünï",
    "日本",
    "a.b.c",
    "-dash",
    "%41",
    "quote'",
    'double"',
    "[1]",
    "new\nline",
    "x" * 120,
]
COMPRESSIONS: list[Callable[[bytes], bytes]] = [
    bytes,
    bytes,
    gzip.compress,
    lzma.compress,
    bz2.compress,
    lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    lambda data: gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :]),
]


@dataclass
class OddFile:
    """A file, what is in it, and what is wrong with it.

    Attributes:
        path: as the source finds it.
        texts: of its good records.
        bad, filtered: how many other records must be set aside, and left out as without text.
        is_damaged: whether it cannot be read to its end, so that no number of its records is known.
    """

    path: str
    texts: list[str] = field(default_factory=list)
    bad: int = 0
    filtered: int = 0
    is_damaged: bool = False


@dataclass
class OddCorpus:
    """A dataset's config, and the files of each of its sources by name."""

    config: DatasetConfig
    files: dict[str, list[OddFile]]


class OddCorpora:
    """Makes corpora below a folder; the same seed makes the same one."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.count = 0

    def make(self) -> OddCorpus:
        """A corpus of one to three sources."""
        files: dict[str, list[OddFile]] = {}
        sources = []
        for i in range(self.random.randint(1, 3)):
            kind = self.random.choice(["text", "separated", "jsonl", "csv", "parquet", "arrow", "huggingface"])
            folder = self.root / f"source {i}"
            folder.mkdir(parents=True)
            name = f"{kind}-{i}"
            files[name] = self._files(kind, folder)
            sources.append(self._source(kind, name, folder))
        config = DatasetConfig(
            name="odd",
            sources=tuple(sources),
            tokenizer=TokenizerConfig(vocab_size=400),
            heldout_fraction=0.2,
            max_bad_share=0.01 if self.random.random() < 0.1 else 1.0,
            max_document_bytes=LONGEST,
            unit_bytes=self.random.choice([3_000, 1_000_000]),
            overlap=self.random.choice([None, OverlapConfig(), OverlapConfig(action="drop")]),
        )
        return OddCorpus(config, files)

    def _source(self, kind: str, name: str, folder: Path) -> SourceConfig:
        if kind == "huggingface":
            return SourceConfig(kind=kind, name=name, dataset=str(folder))
        separator = "\n%%\n" if kind == "separated" else None
        kind = "text" if kind == "separated" else kind
        return SourceConfig(kind=kind, name=name, paths=(str(folder),), separator=separator)

    def _files(self, kind: str, folder: Path) -> list[OddFile]:
        parts = self.random.randint(15, 25) if kind == "text" else self.random.randint(1, 5)
        # Of a folder of the hub, `datasets` takes the files of one format.
        form = self.random.choice(["parquet", "jsonl", "csv"]) if kind == "huggingface" else kind
        files = [self._file(kind, form, folder, i) for i in range(parts)]
        if kind != "huggingface":
            files += self._odd_names(folder)
        return files

    def _odd_names(self, folder: Path) -> list[OddFile]:
        """Links to nothing, to folders and to folders above, hidden files."""
        files = []
        if self.random.random() < 0.3:
            (folder / ".hidden").write_text("not a document")
        if self.random.random() < 0.3:
            (folder / "link to nothing").symlink_to("/nowhere/at all")
            files.append(OddFile(str(folder / "link to nothing"), bad=1))
        if self.random.random() < 0.3:
            (folder / "up").symlink_to(folder)
        if self.random.random() < 0.2:
            os.mkfifo(folder / "pipe")
        return files

    def _file(self, kind: str, form: str, folder: Path, number: int) -> OddFile:
        suffix = {"huggingface": f".{form}"}.get(kind, self.random.choice(["", f".{form}", ".JSONL.GZ", ".gz", ".txt"]))
        inside = folder / "deep" if kind != "huggingface" and self.random.random() < 0.2 else folder
        inside.mkdir(exist_ok=True)
        path = inside / f"{number:02}{self.random.choice(NAMES if kind != 'huggingface' else NAMES[:2])}{suffix}"
        file = OddFile(str(path))
        data = getattr(self, f"_{form}")(file)
        if form in ("parquet", "arrow"):
            if self.random.random() < 0.15:
                data, file.is_damaged = data[: self.random.randint(1, len(data) - 1)], True
        else:
            pack = self.random.choice(COMPRESSIONS)
            packed = pack(data)
            if packed != data and self.random.random() < 0.15:
                packed, file.is_damaged = self._damaged(packed), True
            data = packed
            if file.is_damaged is False and self.random.random() < 0.04:
                data, file.is_damaged = b"PK\x03\x04 an archive", True
        if not data:  # an empty file has no record
            file.filtered = 0
        if kind != "huggingface" and self.random.random() < 0.1:  # as in caches of the hub
            blob = self.root / f"blob{number}-{folder.name}"
            blob.write_bytes(data)
            path.symlink_to(blob)
        else:
            path.write_bytes(data)
        return file

    def _damaged(self, packed: bytes) -> bytes:
        if self.random.random() < 0.5:
            return packed[: self.random.randint(len(packed) // 2, len(packed) - 1)]
        middle = self.random.randint(len(packed) // 3, len(packed) // 2)
        return packed[:middle] + bytes(byte ^ 0x5A for byte in packed[middle : middle + 20]) + packed[middle + 20 :]

    def _text_of_document(self) -> str:
        self.count += 1
        words = self.random.choices(WORDS, k=self.random.randint(1, 40))
        text = f"{self.count} " + self.random.choice([" ", "\n", "  "]).join(words)
        return text + self.random.choice(["", ".", "\n", "\r\n"])

    def _records(self, file: OddFile, bad: dict[str, object], count: int) -> list[tuple[str, object]]:
        """A list of ("good", text), (name of what is wrong, value) and ("empty", None)."""
        records: list[tuple[str, object]] = []
        is_clean = self.random.random() < 0.4
        for _ in range(count):
            draw = self.random.random()
            if is_clean or draw < 0.8:
                file.texts.append(self._text_of_document())
                records.append(("good", file.texts[-1]))
            elif draw < 0.87:
                file.filtered += 1
                records.append(("empty", self.random.choice(["", " \n"])))
            else:
                file.bad += 1
                name = self.random.choice(list(bad))
                records.append((name, bad[name]))
        return records

    def _text(self, file: OddFile) -> bytes:
        bad = {"utf8": b"caf\xe9", "nul": b"a\0b", "long": b"x" * (LONGEST + 1)}
        value = self._records(file, bad, 1)[0][1]
        data = value if isinstance(value, bytes) else str(value).encode()
        return data if self.random.random() < 0.9 or not data else b"\xef\xbb\xbf" + data

    def _separated(self, file: OddFile) -> bytes:
        bad = {"utf8": b"caf\xe9", "nul": b"a\0b", "long": b"x y\n" * LONGEST}
        records = [record for record in self._records(file, bad, self.random.randint(20, 60)) if record[0] != "empty"]
        file.filtered = 0  # blank parts are no documents
        return b"\n%%\n".join(value if isinstance(value, bytes) else str(value).encode() for _, value in records)

    def _jsonl(self, file: OddFile) -> bytes:
        bad: dict[str, object] = {
            "json": b'{"text": "cut',
            "utf8": b'{"text": "\xff"}',
            "nul": b'{"text": "\\u0000"}',
            "key": b'{"body": "x"}',
            "surrogate": b'{"text": "\\ud800"}',
            "digits": b'{"text": "x", "n": ' + b"1" * 5_000 + b"}",
            "deep": b"[" * 50_000,
            "list": b'["text"]',
            "type": b'{"text": {"a": 1}}',
            "long": json.dumps({"text": "y" * (LONGEST + 1)}).encode(),
        }
        records = self._records(file, bad, self.random.randint(20, 60))
        # A file whose first byte is a bracket is a JSON array.
        while records and records[0][0] in ("deep", "list"):
            records.append(records.pop(0))
        lines = []
        for name, value in records:
            if name in ("good", "empty"):
                text = None if name == "empty" and self.random.random() < 0.5 else value
                value = json.dumps({"text": text, "n": 1}, ensure_ascii=self.random.random() < 0.5).encode()
            lines.append(value)
            if self.random.random() < 0.05:
                lines.append(b"")
        ends = self.random.choice([b"\n", b"\r\n"])
        data = ends.join(lines) + self.random.choice([b"", ends])
        return data if self.random.random() < 0.9 else b"\xef\xbb\xbf" + data

    def _csv(self, file: OddFile) -> bytes:
        bad = {"fields": b"1", "more": b"1,2,3", "utf8": b"1,caf\xe9", "quote": b'1,"a"b', "nul": b"1,a\0b"}
        lines = [b"id,text\r\n"]
        for name, value in self._records(file, bad, self.random.randint(20, 60)):
            if name in ("good", "empty"):
                out = io.StringIO()
                csv.writer(out, quoting=csv.QUOTE_ALL).writerow([name, value])
                lines.append(out.getvalue().encode())
            else:
                lines.append(value + b"\r\n")
        return b"".join(lines)

    def _table(self, file: OddFile) -> pa.Table:
        bad = {"utf8": b"caf\xe9", "nul": b"a\0b", "long": b"z" * (LONGEST + 1)}
        records = self._records(file, bad, self.random.randint(20, 60))
        values = [
            value if isinstance(value, bytes) else None if name == "empty" else str(value).encode()
            for name, value in records
        ]
        columns = {"text": pa.array(values, pa.binary()).view(pa.string())}
        if self.random.random() < 0.5:
            columns = {"other": pa.array(range(len(values))), **columns}
        return pa.table(columns)

    def _parquet(self, file: OddFile) -> bytes:
        sink = pa.BufferOutputStream()
        compression = self.random.choice(["snappy", "zstd", "none"])
        pq.write_table(self._table(file), sink, row_group_size=self.random.choice([7, 1_000]), compression=compression)
        return sink.getvalue().to_pybytes()

    def _arrow(self, file: OddFile) -> bytes:
        table, sink = self._table(file), pa.BufferOutputStream()
        writer = self.random.choice([pa.ipc.new_stream, pa.ipc.new_file])
        with writer(sink, table.schema) as out:
            out.write_table(table, max_chunksize=self.random.choice([5, 1_000]))
        return sink.getvalue().to_pybytes()
