"""Adapter for the source code of the Python standard library, real text that needs no network."""

import sysconfig
from pathlib import Path

from ..config import SourceConfig
from .files import SourceFiles


def find_python_stdlib(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Find the `.py` files of the running interpreter's library, without installed packages and tests.

    `test/` has files in unusual encodings on purpose, so it is excluded.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    excluded = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "lib2to3", "idlelib"}
    files = [file for file in root.rglob("*.py") if not excluded.intersection(file.relative_to(root).parts)]
    return SourceFiles("python-stdlib", "PSF-2.0", "text", tuple(map(str, sorted(files))))
