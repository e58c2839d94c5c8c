"""Readers of packages of manuals and source code, where each file is one document."""

import gzip
import re
import tarfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

CODE_SUFFIXES = (".c", ".h", ".S", ".py", ".sh")
# 250 MB of generated register definitions.
SKIPPED_CODE = "/amd/include/"


def read_linux_doc(folder: Path) -> Iterator[dict[str, str]]:
    """The reStructuredText and plain text of Linux's documentation; device bindings in YAML are not prose."""
    root = next(folder.rglob("Documentation"))
    for file in sorted(root.rglob("*")):
        name = file.name.removesuffix(".gz")
        if file.is_file() and name.endswith((".rst", ".txt")):
            data = file.read_bytes()
            text = _decode(gzip.decompress(data) if file.suffix == ".gz" else data)
            yield {"title": str(file.relative_to(root)).removesuffix(".gz"), "text": text}


def read_python_doc(folder: Path) -> Iterator[dict[str, str]]:
    """The reStructuredText of Python's documentation, which lies beside its HTML."""
    root = next(folder.rglob("_sources"))
    for file in sorted(root.rglob("*.rst.txt")):
        yield {"title": str(file.relative_to(root)), "text": file.read_text(encoding="utf-8")}


def read_pod(folder: Path) -> Iterator[dict[str, str]]:
    """Perl's manual pages, their Plain Old Documentation reduced to text."""
    for file in sorted(folder.rglob("*.pod")):
        text = re.sub(
            r"^=(?:pod|cut|over|back|encoding|for|begin|end)\b.*\n?", "", _decode(file.read_bytes()), flags=re.M
        )
        text = re.sub(r"^=(?:head\d|item) *", "", text, flags=re.M)
        # Formatting codes nest: C<B<x>>; innermost first.
        for _ in range(4):
            text = re.sub(r"\b[BCFILSX](?:<<+ (.*?) >>+|<([^<>]*)>)", lambda m: m[1] or m[2] or "", text)
        text = re.sub(r"\bE<(lt|gt)>", lambda m: "<" if m[1] == "lt" else ">", text)
        yield {"title": file.stem, "text": text.strip()}


def _decode(data: bytes) -> str:
    """UTF-8, or Latin-1, in which the older files are written."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_html(folder: Path) -> Iterator[dict[str, str]]:
    """The text of HTML pages."""
    for file in sorted(folder.rglob("*.html")):
        page = _Page()
        page.feed(_decode(file.read_bytes()))
        yield {"title": file.stem, "text": re.sub(r"\n\s*\n+", "\n\n", "".join(page.parts)).strip()}


class _Page(HTMLParser):
    """Text of a page without scripts, styles and the navigation around it; blocks begin on a line of their own."""

    BLOCKS = frozenset(("p", "div", "pre", "li", "tr", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "br", "table"))
    SKIPPED = frozenset(("script", "style", "head", "nav"))

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipping += tag in self.SKIPPED
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._skipping -= tag in self.SKIPPED
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.parts.append(data)


def read_linux_source(folder: Path) -> Iterator[dict[str, str]]:
    """C, assembly, Python and shell of Linux, read straight from its archive, in the archive's order."""
    archive = next(folder.rglob("linux-source-*.tar.xz"))
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(CODE_SUFFIXES) and SKIPPED_CODE not in member.name:
                file = tar.extractfile(member)
                assert file is not None
                yield {"title": member.name.partition("/")[2], "text": _decode(file.read())}
