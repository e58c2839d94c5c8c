"""Ray Train's controller with worker groups that release their resources when they fail to start. Imports Ray."""

from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup


class ReleasingWorkerGroup(WorkerGroup):
    """A worker group that releases its workers and their placement group if anything fails between placement and the first step.

    Ray Train does so only until its callbacks begin; the place of a group that was lost later would be taken for ever, and
    the next group would wait for it in vain.
    """

    def _start(self) -> None:
        try:
            super()._start()
        except BaseException:
            if self.has_started():
                self.abort()
            raise


class Controller(TrainController):
    """`TrainController` with `ReleasingWorkerGroup`."""

    worker_group_cls = ReleasingWorkerGroup
