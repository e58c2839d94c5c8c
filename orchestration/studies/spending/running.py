"""The GPU-hours of a running study: which cells may start now, and whether the hours are used up."""

import time

from ..folder import StudyFolder
from ..plan import Plan
from .choice import Choice
from .spent import choice_of, record_choice, spent_hours

LOOK_SECONDS = 10.0  # between two looks at the hours of cells that run


class Allowance:
    """Follows the folder of a study whose `limits.gpu_hours` is set; chooses anew whenever a cell has ended."""

    def __init__(self, folder: StudyFolder, plan: Plan):
        self._folder, self._plan = folder, plan
        self._chosen: Choice | None = None
        self._ended, self._looked, self._used_up = -1, -float("inf"), False

    def kept(self) -> tuple[str, ...]:
        """Names of the cells that may start now."""
        files = (*self._folder.runs.glob("*/cell.json"), *self._folder.path.glob("failures/*.json"))
        if self._chosen is None or len(files) != self._ended:
            self._ended, self._chosen = len(files), choice_of(self._folder, self._plan)
            assert self._chosen is not None, "only with limits.gpu_hours"
            record_choice(self._folder, self._chosen)
        return self._chosen.kept

    def used_up(self) -> bool:
        """Whether the hours were used up when they were last counted."""
        limit = self._plan.study.limits.gpu_hours
        if limit is not None and not self._used_up and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            self._used_up = spent_hours(self._folder, self._plan) >= limit
        return self._used_up
