"""The branching of cells from trunks: the start of a cell's run, and how far its trunk must be trained."""

from collections.abc import Iterable
from pathlib import Path

from ....evals.layout import complete_steps
from ....models.common.run_layout import ENGINE, checkpoint_name
from ....pipeline.config import StartFromSection
from ....pipeline.run.folder import RunFolder
from ..plan import StudyCell
from ..results import FILE_NAME


def reached_step(trunk: Path) -> int:
    """The step of a trunk's newest complete checkpoint; 0 without any."""
    return max((step for step, _ in complete_steps(trunk)), default=0)


def has_begun(run: Path) -> bool:
    """Whether a cell no longer needs its trunk: it has a record, or has linked the checkpoint that it begins from."""
    return (run / FILE_NAME).is_file() or RunFolder(run).exists()


def needed_step(branches: Iterable[tuple[StudyCell, Path]]) -> int:
    """The last step from which a cell that has not begun branches; 0 if all have.

    Args:
        branches: the cells of a trunk, each with the folder of its run.
    """
    return max((cell.branch_step for cell, run in branches if not has_begun(run)), default=0)


def can_begin(cell: StudyCell, run: Path, trunk: Path) -> bool:
    """Whether a cell's run, in the folder `run`, has begun, or its trunk has come to the step from which it branches."""
    return RunFolder(run).exists() or reached_step(trunk) >= cell.branch_step


def start_from(cell: StudyCell, run: Path, trunk: Path) -> StartFromSection | None:
    """The start of a cell's run: the one it has begun with already, else the trunk's checkpoint at its step.

    A budget that was added later may branch between two checkpoints: then it begins at the one before, and trains a stretch of
    the trunk itself; None if there is none.
    """
    if RunFolder(run).exists():
        return RunFolder(run).load_config().start_from
    resumable = [
        step
        for step, _ in complete_steps(trunk)
        if step <= cell.branch_step and (RunFolder(trunk).checkpoints / checkpoint_name(step) / ENGINE).is_dir()
    ]
    if not resumable:
        return None
    return StartFromSection(run=str(trunk.resolve()), step=max(resumable), what="everything")
