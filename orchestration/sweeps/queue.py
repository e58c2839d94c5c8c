"""The runs of recall sweeps as a queue of jobs: groups are formed when there is room for them, from what is still missing."""

from collections.abc import Collection

from ...evals.sweeps.config import RecallSweep
from ...evals.sweeps.plan import chosen_runs, missing_runs, next_group
from ...evals.sweeps.result_files import Results, SweepFolder
from ...evals.sweeps.runs import RecallRun, runs_of
from ..jobs.job import Resources, is_held
from ..jobs.scheduler import Scheduler
from .group import GroupJob


class SweepQueue:
    """The queue of a sweep's groups of runs.

    Args:
        arms: only the runs of these; all if empty.
        together: runs that train side by side in one process.

    Raises:
        UserError: an unknown arm, an impossible run, or a damaged result file.
    """

    def __init__(
        self,
        sweep: RecallSweep,
        folder: SweepFolder,
        *,
        arms: Collection[str] = (),
        together: int,
        device: str,
        resources: Resources,
    ):
        self.sweep, self.folder = sweep, folder
        self.planned = runs_of(sweep)
        self.chosen = chosen_runs(sweep, self.planned, arms)
        self.results = Results(folder)
        self._together, self._device, self._resources = together, device, resources
        self._groups: list[GroupJob] = []

    def missing(self) -> list[RecallRun]:
        """The runs without a result that need one."""
        return missing_runs(self.sweep, self.chosen, self.planned, self.results.refresh())

    def due(self, ahead: int, scheduler: Scheduler) -> list[GroupJob]:
        """The groups that run or are to be run, at least `ahead` of them if there are so many.

        Groups that failed for good leave their place to others, and so do those that another process holds.
        """
        missing = self.missing()
        self._groups = [group for group in self._groups if not group.is_done()]
        failed = {job.leases[0] for job in scheduler.failed}
        running = {job.leases[0] for job in scheduler.running}
        started = [run for group in self._groups for run in group.runs]
        open_groups = [group for group in self._groups if group.leases[0] not in failed]
        ready = sum(group.leases[0] in running or not is_held(group) for group in open_groups)
        while ready < ahead and (runs := next_group(self.sweep, missing, self._together, started)):
            group = GroupJob(self.sweep, tuple(runs), self.folder, self._device, self._resources)
            started += runs
            self._groups.append(group)
            open_groups.append(group)
            ready += not is_held(group)
        return open_groups

    def longest_seconds(self) -> float:
        """The longest measured duration of a group in seconds; 0 before the first."""
        return max((result.get("group_seconds", 0.0) for result in self.results.found.values()), default=0.0)
