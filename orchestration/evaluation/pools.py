"""Pools of workers for evaluations: tasks of a Ray cluster, or processes of this machine."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

from ...models.common.validation import first_line
from ...pipeline.monitoring.node import node_name
from ..jobs.scheduler import ATTEMPTS
from .jobs import EvaluationJob, run_job


class RayPool:
    """Runs jobs as tasks of the connected Ray cluster.

    By default no CPU is reserved: on a machine whose cores all train, none would become free; the evaluations run at low
    priority instead. With `cpus` or `gpus` they wait for resources of their own.
    """

    def __init__(self, size: int, *, cpus: float = 0, gpus: float = 0):
        self.size, self._cpus, self._gpus = size, cpus, gpus
        self._running: dict[Any, EvaluationJob] = {}

    def submit(self, job: EvaluationJob) -> None:
        import ray

        hidden = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if not self._gpus else {}
        remote = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=ATTEMPTS,
            runtime_env=hidden,
            scheduling_strategy="SPREAD",  # otherwise tasks without reservations would all run on one node
        )
        self._running[remote(_run_on_ray).remote(job)] = job

    def collect_ended(self) -> list[tuple[EvaluationJob, str | None, str | None]]:
        import ray

        if not self._running:
            return []
        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        results = []
        names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()} if ended else {}
        for reference in ended:
            job = self._running.pop(reference)
            try:
                node = ray.get(reference)
                results.append((job, node and names.get(node, node), None))
            except Exception as error:  # a failed evaluation is counted and reported; it does not stop the training
                results.append((job, None, str(error).strip().splitlines()[-1]))
        return results


class ProcessPool:
    """Runs jobs as processes of this machine, without Ray; they end with this process."""

    def __init__(self, size: int):
        self.size = size
        self._context = multiprocessing.get_context("spawn")
        self._running: list[tuple[EvaluationJob, Any, Connection]] = []

    def submit(self, job: EvaluationJob) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_run_and_send, args=(job, sender), daemon=True)
        process.start()
        sender.close()
        self._running.append((job, process, receiver))

    def collect_ended(self) -> list[tuple[EvaluationJob, str | None, str | None]]:
        ended = [entry for entry in self._running if not entry[1].is_alive()]
        self._running = [entry for entry in self._running if entry not in ended]
        results = []
        for job, process, receiver in ended:
            try:
                completed, error = receiver.recv()
            except EOFError:
                completed, error = False, f"its process ended with code {process.exitcode}"
            receiver.close()
            results.append((job, node_name() if completed else None, error))
        return results


def _run_niced(job: EvaluationJob) -> bool:
    import torch

    if os.nice(0) < 10:
        os.nice(10)
    torch.set_num_threads(1)
    return run_job(job)


def _run_on_ray(job: EvaluationJob) -> str | None:
    """Run a job in a Ray task; returns the id of its node, or None if another process holds the job."""
    import ray

    return ray.get_runtime_context().get_node_id() if _run_niced(job) else None


def _run_and_send(job: EvaluationJob, connection: Connection) -> None:
    try:
        connection.send((_run_niced(job), None))
    except Exception as error:
        connection.send((False, first_line(error)))
