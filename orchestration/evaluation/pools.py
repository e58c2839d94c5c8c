"""Where evaluations run: tasks of a Ray cluster, or processes of this machine."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

from ...models.common.validation import first_line
from ...pipeline.monitoring.node import node_name
from ..jobs.scheduler import ATTEMPTS
from .jobs import EvaluationJob, run_job


class RayPool:
    """Jobs as tasks of the connected Ray cluster.

    By default no CPU is reserved: on a machine whose cores all train, a reserved core would never come free, and the
    evaluations' low priority yields instead. With `cpus` or `gpus` they wait for resources of their own.
    """

    def __init__(self, size: int, *, cpus: float = 0, gpus: float = 0):
        self.size, self._cpus, self._gpus = size, cpus, gpus
        self._flying: dict[Any, EvaluationJob] = {}

    def submit(self, job: EvaluationJob) -> None:
        import ray

        hidden = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if not self._gpus else {}
        remote = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=ATTEMPTS,
            runtime_env=hidden,
            scheduling_strategy="SPREAD",  # or those that reserve nothing would all crowd one node
        )
        self._flying[remote(_run_on_ray).remote(job)] = job

    def done(self) -> list[tuple[EvaluationJob, str | None, str | None]]:
        import ray

        if not self._flying:
            return []
        ended, _ = ray.wait(list(self._flying), num_returns=len(self._flying), timeout=0)
        results = []
        names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()} if ended else {}
        for reference in ended:
            job = self._flying.pop(reference)
            try:
                node = ray.get(reference)
                results.append((job, node and names.get(node, node), None))
            except Exception as error:  # a failed evaluation is counted and reported, never a reason to stop training
                results.append((job, None, str(error).strip().splitlines()[-1]))
        return results


class ProcessPool:
    """Jobs as processes of this machine, without Ray. They die with this process."""

    def __init__(self, size: int):
        self.size = size
        self._context = multiprocessing.get_context("spawn")
        self._flying: list[tuple[EvaluationJob, Any, Connection]] = []

    def submit(self, job: EvaluationJob) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_run_and_tell, args=(job, theirs), daemon=True)
        process.start()
        theirs.close()
        self._flying.append((job, process, ours))

    def done(self) -> list[tuple[EvaluationJob, str | None, str | None]]:
        ended = [entry for entry in self._flying if not entry[1].is_alive()]
        self._flying = [entry for entry in self._flying if entry not in ended]
        results = []
        for job, process, ours in ended:
            try:
                did, error = ours.recv()
            except EOFError:
                did, error = False, f"its process ended with code {process.exitcode}"
            ours.close()
            results.append((job, node_name() if did else None, error))
        return results


def _run_niced(job: EvaluationJob) -> bool:
    import torch

    if os.nice(0) < 10:
        os.nice(10)
    torch.set_num_threads(1)
    return run_job(job)


def _run_on_ray(job: EvaluationJob) -> str | None:
    """The id of the node that did it, or None."""
    import ray

    return ray.get_runtime_context().get_node_id() if _run_niced(job) else None


def _run_and_tell(job: EvaluationJob, connection: Connection) -> None:
    try:
        connection.send((_run_niced(job), None))
    except Exception as error:
        connection.send((False, first_line(error)))
