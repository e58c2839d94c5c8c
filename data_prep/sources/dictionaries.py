"""Readers of packages of short entries: dictionaries of dictd, a commentary of SWORD, package descriptions of Debian."""

import gzip
import html
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_BASE64 = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def read_dictionary(folder: Path) -> Iterator[dict[str, str]]:
    """The entries of dictd dictionaries: `*.dict.dz` is gzip, `*.index` says where entries begin and how long they are.

    Several headwords may name one entry; it comes once, under the first of them, in the order of the text.
    """
    for index in sorted(folder.rglob("*.index")):
        data = gzip.decompress(index.with_suffix(".dict.dz").read_bytes())
        entries: dict[tuple[int, int], str] = {}
        for line in index.read_text(encoding="utf-8").splitlines():
            word, start, length = line.split("\t")[:3]
            # Headwords of the dictionary itself (its name, its address) begin so.
            if not word.startswith("00-"):
                entries.setdefault((_number(start), _number(length)), word)
        for (start, length), word in sorted(entries.items()):
            text = data[start : start + length].decode("utf-8", errors="replace").strip()
            yield {"title": word, "text": text}


def _number(digits: str) -> int:
    """A number in dictd's base 64."""
    value = 0
    for digit in digits:
        value = value * 64 + _BASE64[digit]
    return value


def read_sword_commentary(folder: Path) -> Iterator[dict[str, str]]:
    """The chapters of a SWORD commentary: `*.czs` lists blocks of `*.czz` (offset, size, text size), zlib each."""
    for index in sorted(folder.rglob("*.czs")):
        data = index.with_suffix(".czz").read_bytes()
        for number, (start, size, _) in enumerate(struct.iter_unpack("<III", index.read_bytes())):
            marked = zlib.decompress(data[start : start + size]).decode("utf-8", errors="replace")
            lines = re.sub(r"</?(?:p|div|lb|l|lg|title|chapter|list|item)\b[^>]*>", "\n", marked)
            text = html.unescape(re.sub(r"<[^>]*>", "", lines)).replace("\0", "")
            text = re.sub(r"\n\s*\n+", "\n\n", text).strip()
            if text:
                yield {"title": f"{index.stem} {number}", "text": text}


def read_descriptions(files: Iterable[Path]) -> Iterator[dict[str, str]]:
    """Descriptions of Debian's packages: name, short description, then the long one with its ` .` as empty lines."""
    for file in files:
        for stanza in file.read_text(encoding="utf-8").split("\n\n"):
            name = re.search(r"^Package: (.+)$", stanza, re.M)
            description = re.search(r"^Description-en: ((?:.+\n?)(?: .*\n?)*)", stanza, re.M)
            if name and description:
                short, *rest = description[1].rstrip().split("\n")
                lines = ["" if line.strip() == "." else line[1:] for line in rest]
                yield {"title": name[1], "text": "\n".join([f"{name[1]}: {short}", "", *lines]).rstrip()}
