"""Results of sweeps in one file, to be brought home from a machine that is there for a limited time."""

import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...evals.sweeps.result_files import write_joined
from ...models.common.errors import UserError
from ...models.common.files import write_aside
from .queue import SweepQueue

SUFFIXES = (".tar.xz", ".tar")


def check_archive(path: Path) -> None:
    """Refuse an archive that could not be written at the end.

    Raises:
        UserError: another suffix, or a folder.
    """
    if not path.name.endswith(SUFFIXES) or path.is_dir():
        raise UserError(f"--archive {path}: name a file that ends in {' or '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)


def pack(path: Path, queues: Sequence[SweepQueue]) -> None:
    """Write `NAME.json` with all runs of each sweep, old and new, into the archive.

    Unpacked in a folder of sweeps these are read as the folder's own results.
    """
    mode = "w:xz" if path.name.endswith(".xz") else "w"
    with tempfile.TemporaryDirectory() as scratch, write_aside(path) as aside, tarfile.open(aside, mode) as archive:
        for queue in queues:
            joined = Path(scratch) / f"{queue.sweep.name}.json"
            write_joined(joined, queue.sweep.name, queue.results.refresh().values())
            archive.add(joined, joined.name)
