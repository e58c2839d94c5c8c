"""Ray Train policies for worker groups: restarts after failures, hang detection, elastic size. Imports Ray."""

import time
from collections.abc import Collection
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from ...models.common.retries import RestartLimit
from ...pipeline.monitoring.hang import HangDetector
from ...pipeline.monitoring.heartbeat import HEARTBEAT_SECONDS, HeartbeatRecord, read_heartbeats
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.stop_request import stop_reason
from ...pipeline.run.supervision import record_event
from .controller import Controller

SILENT_SECONDS = 3 * HEARTBEAT_SECONDS


class WorkerGroupTrainer(TorchTrainer):
    """`TorchTrainer` with the given failure and scaling policies instead of the default ones."""

    def __init__(self, *arguments: Any, failure_policy: FailurePolicy, scaling_policy: Any = None, **options: Any):
        super().__init__(*arguments, **options)
        self._policies = {"failure_policy": failure_policy}
        if scaling_policy:
            self._policies["scaling_policy"] = scaling_policy

    def _create_default_callbacks(self) -> list[Any]:
        """The default callbacks without the one for Ray datasets, which are not used here and would cost a process."""
        return [entry for entry in super()._create_default_callbacks() if not isinstance(entry, DatasetsCallback)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        module: Any = data_parallel_trainer
        module.TrainController = Controller  # Ray Train has no option for it
        return super()._initialize_and_run_controller(**(options | self._policies))


class Hang(Exception):
    """The error of a hung worker group, raised in the controller, where every error goes to the failure policy."""


class HangCallback(WorkerGroupCallback):
    """Detects hangs from the heartbeats whenever Ray Train polls its workers."""

    def __init__(self, run: RunFolder, hang_seconds: float):
        self._run, self._seconds = run, hang_seconds
        self._detector = HangDetector(hang_seconds)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        hung_ranks = self._detector.hung_ranks(read_heartbeats(self._run), time.monotonic())
        if not hung_ranks or worker_group_status.errors:
            return
        self._detector = HangDetector(self._seconds)
        for heartbeat in hung_ranks:
            message = (
                f"rank {heartbeat.rank} on {heartbeat.node} hangs since step {heartbeat.step} (in {heartbeat.where})"
            )
            fields = {
                "name": heartbeat.node,
                "rank": heartbeat.rank,
                "node": heartbeat.node,
                "pid": heartbeat.pid,
                "message": message,
            }
            record_event(self._run, "hang", what="worker", **fields)
        raise Hang(", ".join(f"rank {heartbeat.rank} on {heartbeat.node}" for heartbeat in hung_ranks))


class RestartPolicy(FailurePolicy):
    """Restart until `max_restarts` consecutive failures without a new checkpoint.

    The pause before a restart grows from one second to a minute. A worker group that cannot be placed, because a node is down,
    is retried for `wait_seconds`. A `UserError` ends the run at once.
    """

    def __init__(self, failure_config: Any, run: RunFolder, max_restarts: int, wait_seconds: float):
        super().__init__(failure_config)
        self._run, self._wait = run, wait_seconds
        self._limit = RestartLimit(max_restarts, lambda: _latest(run))
        self._no_room_since: float | None = None

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if self._run.error_file.is_file() or stop_reason(self._run):
            return FailureDecision.RAISE
        cause = getattr(training_failed_error, "controller_failure", None)
        if isinstance(cause, WorkerGroupStartupTimeoutError):
            self._no_room_since = self._no_room_since or time.monotonic()
            waited = time.monotonic() - self._no_room_since
            return FailureDecision.RETRY if waited < self._wait else FailureDecision.RAISE
        self._no_room_since = None
        heartbeats = read_heartbeats(self._run)
        silent = self._silent_ranks(heartbeats) if may_hide_dead_workers(training_failed_error, heartbeats) else set()
        alive = {node["NodeName"] for node in ray.nodes() if node["Alive"]}
        for what, name, message in worker_failures(training_failed_error, heartbeats, alive, silent):
            record_event(self._run, "lost", what=what, name=name, message=message)
        pause = self._limit.after_failure()
        if pause is None:
            return FailureDecision.RAISE
        if pause:
            time.sleep(pause)
        return FailureDecision.RETRY

    def _silent_ranks(self, heartbeats: list[HeartbeatRecord]) -> set[int]:
        """Ranks without a heartbeat for `SILENT_SECONDS`; workers that wait in a collective still write theirs."""
        time.sleep(SILENT_SECONDS)
        now = {heartbeat.rank: heartbeat.time for heartbeat in read_heartbeats(self._run)}
        return {heartbeat.rank for heartbeat in heartbeats if now.get(heartbeat.rank) == heartbeat.time}


class GrowAtCheckpoints(ElasticScalingPolicy):
    """Elastic scaling of Ray Train, limited to numbers of workers that divide the batch.

    After a failure it uses the remaining nodes. It grows right after the next checkpoint, so that few steps are repeated.
    """

    def __init__(self, scaling_config: Any, run: RunFolder, counts: list[int]):
        super().__init__(scaling_config)
        self._run, self._counts = run, counts
        self._pending_resize: ResizeDecision | None = None
        self._checkpoint = ""

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((count for count in self._counts if count <= possible), default=0)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            if decision.num_workers <= worker_group_state.num_workers:
                self._pending_resize = None  # resources are gone, their workers still live: left to the failure policy
            elif self._pending_resize is None:
                self._pending_resize, self._checkpoint = decision, _latest(self._run)
        if self._pending_resize is None or _latest(self._run) == self._checkpoint:
            return NoopDecision()
        resize, self._pending_resize = self._pending_resize, None
        return resize


def may_hide_dead_workers(error: TrainingFailedError, heartbeats: list[HeartbeatRecord]) -> bool:
    """Whether a worker beyond the failed ones may be dead: its peers lose the connection before Ray notices."""
    if not isinstance(error, WorkerGroupError) or any(map(_death, error.worker_failures.values())):
        return False
    return any(heartbeat.rank not in error.worker_failures for heartbeat in heartbeats)


def worker_failures(
    error: TrainingFailedError, heartbeats: list[HeartbeatRecord], alive: set[str], silent: Collection[int] = ()
) -> list[tuple[str, str, str]]:
    """The nodes and workers that failed, as ("node" or "worker", name of the node, message).

    Workers that only lost the connection to a dead one are omitted, unless there is no other.

    Args:
        heartbeats: the last ones of the worker group that failed.
        alive: names of the nodes that the cluster has now.
        silent: ranks without a heartbeat since the failure; ranks that failed have ended and are silent anyway.
    """
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, Hang):
        return []  # HangCallback has recorded it
    if not isinstance(error, WorkerGroupError):
        return [("worker", "", f"a worker group did not start: {_line(error)}")]
    nodes = {heartbeat.rank: heartbeat.node for heartbeat in heartbeats}
    dead, others = [], []
    failures = error.worker_failures
    for rank in sorted({*failures, *silent}):
        node = nodes.get(rank, "")
        where = f"rank {rank} on {node or 'a node that had not begun'}"
        if node and node not in alive:
            dead.append(("node", node, f"{where}: the node died"))
        elif rank not in failures:
            dead.append(("worker", node, f"{where} fell silent"))
        elif death := _death(failures[rank]):
            dead.append(("worker", node, f"{where} {death}"))
        else:
            others.append(("worker", node, f"{where}: {_line(_cause(failures[rank]))}"))
    return dead or others


def _death(failure: BaseException) -> str | None:
    """The evidence that a worker is dead, as text; None if its function only raised an error."""
    if isinstance(failure, WorkerHealthCheckTimeoutError):
        return "does not answer"
    return "died" if isinstance(_cause(failure), RayActorError) else None


def _cause(failure: BaseException) -> BaseException:
    return getattr(failure, "health_check_failure", None) or failure.__cause__ or failure


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _latest(run: RunFolder) -> str:
    try:
        return run.latest_file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
