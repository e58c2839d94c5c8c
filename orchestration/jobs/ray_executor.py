"""Jobs as tasks of the connected Ray cluster."""

import time
import traceback
from typing import Any, Self

from ...models.common.validation import first_line
from .executors import Ended, redirect_output, timeout_message
from .job import Job, run_under_leases


class RayExecutor:
    """Runs each job as a task of the connected Ray cluster, spread over its nodes.

    A job that reserves no CPU may run on a machine whose cores all train: none would become free there. Ray queues tasks that do
    not fit.

    Args:
        limit: jobs at once; None for as many as there are.
    """

    def __init__(self, limit: int | None = None):
        self._limit = limit
        self._running: dict[Any, tuple[Job, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running = {}

    def has_room(self, job: Job) -> bool:
        return self._limit is None or len(self._running) < self._limit

    def start(self, job: Job) -> None:
        import ray

        # A task without a GPU would see all of them.
        hidden = {} if job.resources.gpus else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        task = ray.remote(
            num_cpus=job.resources.cpus,
            num_gpus=job.resources.gpus,
            max_calls=1 if job.own_process else 0,
            max_retries=0,  # the scheduler counts the attempts
            runtime_env=hidden,
            scheduling_strategy="SPREAD",  # otherwise tasks without reservations would all run on one node
        )(_work)
        self._running[task.remote(job)] = job, time.monotonic()

    def collect_ended(self) -> list[Ended]:
        import ray

        if not self._running:
            return []
        for reference, (job, started) in list(self._running.items()):
            if job.timeout_seconds is not None and time.monotonic() - started > job.timeout_seconds:
                ray.cancel(reference, force=True)
        ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()} if ready else {}
        ended = []
        for reference in ready:
            job, started = self._running.pop(reference)
            try:
                node, error = ray.get(reference)
            except Exception as failure:  # a dead worker or node; the others go on
                late = job.timeout_seconds is not None and time.monotonic() - started > job.timeout_seconds
                node, error = None, timeout_message(job.timeout_seconds) if late else _last_line(failure)
            ended.append(Ended(job, node and names.get(node, node), error))
        return ended


def _work(job: Job) -> tuple[str | None, str | None]:
    """Run a job in a Ray task; returns the id of its node (None if another process holds the job) and its error."""
    import ray

    if job.log is not None:
        redirect_output(job.log)
    try:
        job.prepare_worker()
        held = run_under_leases(job)
    except Exception as error:
        if job.log is not None:
            traceback.print_exc()
        return None, first_line(error)
    return ray.get_runtime_context().get_node_id() if held else None, None


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
