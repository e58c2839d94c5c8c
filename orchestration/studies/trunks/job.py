"""The training of a trunk as a job: as far as the cells without a record need it."""

from dataclasses import dataclass
from pathlib import Path

from ....models.common.errors import UserError
from ....pipeline.config import RunConfig
from ....pipeline.run.amend import amend
from ....pipeline.run.folder import RunFolder
from ....pipeline.run.stop_request import clear_stop_request
from ..cell import StudyJob
from ..plan import StudyCell
from .branching import has_begun, needed_step, reached_step


@dataclass(frozen=True)
class TrunkJob(StudyJob):
    """The training of a trunk, with a checkpoint at every step from which a cell branches; resumes an earlier attempt.

    Attributes:
        branches: the cells that branch from it, each with the folder of its run.
        last_step: it is trained no further, as the study's GPU-hours allow no cell beyond; None without such a limit.
    """

    branches: tuple[tuple[StudyCell, Path], ...] = ()
    last_step: int | None = None

    def share_to_next_branch(self) -> float:
        """The share of the trunk's steps between its last checkpoint and the next step from which a cell branches."""
        reached = reached_step(self.folder)
        ahead = [cell.branch_step for cell, run in self.branches if cell.branch_step > reached and not has_begun(run)]
        return (min(ahead) - reached) / self.cell.steps if ahead else 0.0

    def is_done(self) -> bool:
        """Whether every cell of the trunk that may be trained has begun or can begin."""
        return reached_step(self.folder) >= self._needed_step()

    def run(self) -> None:
        """Train to the last step that is needed. A trunk that ended where a smaller budget branched goes on from there.

        Raises:
            UserError: a folder of another run, damaged data, or gradients that are not finite.
        """
        run, needed = RunFolder(self.folder.resolve()), self._needed_step()
        config = self._config(self.config.train.steps, needed)
        if run.exists() and (before := run.load_config().train.steps) < config.train.steps:
            run.prepare(self._config(before, needed), self.dataset.resolve())  # or something else has changed
            with run.lock():
                amend(run, config)
        run.prepare(config, self.dataset.resolve())
        clear_stop_request(run)
        self.train(run)
        if not self.is_done():
            raise UserError(f"{run.path} was stopped before its end; it goes on from its last checkpoint")

    def _needed_step(self) -> int:
        needed = needed_step(self.branches)
        return needed if self.last_step is None else min(needed, self.last_step)

    def _config(self, steps: int, needed: int) -> RunConfig:
        train = self.config.train.model_copy(update={"steps": steps})
        branch_steps = tuple(sorted({cell.branch_step for cell, _ in self.branches}))
        execution = self.config.run.model_copy(update={"checkpoint_steps": branch_steps, "stop_step": needed})
        return self.config.model_copy(update={"train": train, "run": execution})
