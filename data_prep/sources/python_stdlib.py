"""The source of the Python standard library: real text that is there without any network."""

import sysconfig
from pathlib import Path

from ..config import SourceConfig
from .files import SourceFiles


def find_python_stdlib(config: SourceConfig, downloads: Path) -> SourceFiles:
    """The `.py` files of the running interpreter's library, without installed packages and its test data.

    `test/` holds files in odd encodings on purpose, so it is left out.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "lib2to3", "idlelib"}
    files = [file for file in root.rglob("*.py") if not left_out.intersection(file.relative_to(root).parts)]
    return SourceFiles("python-stdlib", "PSF-2.0", "text", tuple(sorted(files)))
