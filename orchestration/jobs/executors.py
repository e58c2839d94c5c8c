"""Executors, which run jobs: here as processes of this machine, in `ray_executor.py` as tasks of a Ray cluster."""

import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from ...models.common.parent import end_with_parent
from ...models.common.validation import first_line
from ...pipeline.monitoring.node import node_name
from ...pipeline.visible_gpus import visible_gpus
from .devices import Devices
from .job import Job, run_under_leases

EXIT_SECONDS = 20.0  # for workers to end after SIGTERM


class Ended(NamedTuple):
    """An attempt that ended: `node` did the work, or `error` is its one line; neither if another process holds the job."""

    job: Job
    node: str | None = None
    error: str | None = None


class Executor(Protocol):
    """The interface of executors, which run jobs. Leaving the context stops jobs that still run; no method waits for a job."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def has_room(self, job: Job) -> bool:
        """Whether the job could be started now."""
        ...

    def start(self, job: Job) -> None:
        """Start the job; only where there is room for it."""
        ...

    def collect_ended(self) -> list[Ended]:
        """The attempts that ended since the last call."""
        ...


@dataclass
class _Worker:
    job: Job
    process: BaseProcess
    receiver: Connection
    devices: tuple[int, ...]
    started: float


class ProcessExecutor:
    """Runs each job in a spawned process, packed by their shares on `count` devices of this machine.

    Args:
        count: devices, or processes at once where a job has a whole share.
        gpus: whether the devices are GPUs, of which a job sees its own alone, one or several.
    """

    def __init__(self, count: int, *, gpus: bool = False):
        self._devices, self._gpus = Devices(count), gpus
        self._workers: list[_Worker] = []
        # Threads of this process make a fork unsafe, and DeepSpeed trains once a process.
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.process.terminate()  # training saves a checkpoint then
        deadline = time.monotonic() + EXIT_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def has_room(self, job: Job) -> bool:
        return self._devices.has_room(job.resources.share)

    def start(self, job: Job) -> None:
        devices = self._devices.reserve(job.resources.share)
        assert devices is not None, "only where there is room"
        receiver, sender = self._context.Pipe(duplex=False)
        arguments = (job, devices if self._gpus else None, sender)
        alone = len(devices) == 1  # a daemon may not start the processes of a worker group
        process = self._context.Process(target=_work_and_send, args=arguments, name=job.name, daemon=alone)
        process.start()
        sender.close()
        self._workers.append(_Worker(job, process, receiver, devices, time.monotonic()))

    def collect_ended(self) -> list[Ended]:
        ended = []
        for worker in list(self._workers):
            seconds, limit = time.monotonic() - worker.started, worker.job.timeout_seconds
            late = limit is not None and seconds > limit
            if worker.process.is_alive():
                if not late:
                    continue
                worker.process.kill()
            worker.process.join()
            self._workers.remove(worker)
            self._devices.release(worker.devices, worker.job.resources.share)
            try:
                held, error = worker.receiver.recv()
                ended.append(Ended(worker.job, node_name() if held else None, error))
            except EOFError:
                code = worker.process.exitcode or 0
                reason = timeout_message(limit) if late else _death(worker.job, code)
                ended.append(Ended(worker.job, error=reason))
            worker.receiver.close()
        return ended


def timeout_message(seconds: float | None) -> str:
    """The error of a job that ran longer than its limit of `seconds`."""
    return f"stopped, as it took longer than its limit of {seconds:g} s"


def redirect_output(log: Path) -> None:
    """Append what this process prints to the file `log` from now on."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _work_and_send(job: Job, gpus: tuple[int, ...] | None, connection: Connection) -> None:
    """Run a job in a spawned process, which ends with its parent, and send whether it was held, and its error."""
    end_with_parent()
    if job.log is not None:
        redirect_output(job.log)
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus(gpus)
    try:
        job.prepare_worker()
        connection.send((run_under_leases(job), None))
    except Exception as error:
        if job.log is not None:
            traceback.print_exc()
        connection.send((False, first_line(error)))


def _death(job: Job, code: int) -> str:
    """The error text for a worker that ended without a message: its signal, else the last line of its log."""
    if code < 0:
        return f"killed by signal {-code}"
    lines = []
    if job.log is not None and job.log.is_file():
        lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        # What libraries print at the exit comes after the error: "[rank0]:[W1126 ...] Warning: destroy_process_group() ...".
        lines = [line for line in lines if not line.startswith("[")] or lines
    return lines[-1] if lines else f"its process ended with code {code}"
