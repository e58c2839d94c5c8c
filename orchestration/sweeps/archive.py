"""Archives of sweeps: results in one file, to be copied from a machine that is only available for a limited time."""

import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...evals.sweeps.result_files import write_joined
from ...models.common.files import write_aside
from .queue import SweepQueue


def pack(path: Path, queues: Sequence[SweepQueue]) -> None:
    """Write `NAME.json` with all runs of each sweep, old and new, into the archive.

    Unpacked in a folder of sweeps these are read as the folder's own results.
    """
    with tempfile.TemporaryDirectory() as scratch, write_aside(path) as aside, tarfile.open(aside, "w:xz") as archive:
        for queue in queues:
            joined = Path(scratch) / f"{queue.sweep.name}.json"
            write_joined(joined, queue.sweep.name, queue.results.refresh().values())
            archive.add(joined, joined.name)
