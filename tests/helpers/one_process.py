"""An executor that runs jobs one after the other in one process: starting processes is most of a small cell's time."""

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from echo_lm.orchestration.jobs.executors import Ended
from echo_lm.orchestration.jobs.job import run_under_leases
from echo_lm.pipeline import loop
from tests.helpers import warm
from tests.helpers.ports import free_port


class OneProcess:
    """Runs jobs of studies. Its process dies by `kill -9` in step `kill_at` of the run `kill_in`, once that has a checkpoint."""

    def __init__(self, kill_in: str = "", kill_at: int = 0):
        context = warm.context()
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, free_port(), kill_in, kill_at), daemon=True)
        self.process.start()
        theirs.close()
        self._job, self.started = None, []

    def __enter__(self) -> "OneProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def close(self) -> None:
        """End the process, which outlives the context: it can serve several studies."""
        self.process.kill()
        self.process.join()

    def has_room(self, job: Any) -> bool:
        return self._job is None

    def start(self, job: Any) -> None:
        self._job = job
        self.started.append(job.name)
        self._connection.send(job)

    def collect_ended(self) -> list[Ended]:
        if self._job is None or not self._connection.poll(0.02):
            return []
        error = self._connection.recv()  # EOFError if it was killed
        job, self._job = self._job, None
        return [Ended(job, None if error else "here", error)]


def _serve(connection: Connection, port: int, kill_in: str, kill_at: int) -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.destroy_process_group = lambda: None  # DeepSpeed keeps the process group in its modules' globals
    loop.join_process_group(torch.device("cpu"))
    rate_at, train = loop.learning_rate_at, loop.train
    here = [""]

    def train_here(folder: Path, compilation: Any = None) -> None:
        here[0] = Path(folder).name
        train(folder)

    def rate_or_death(step: int, section: Any) -> float:
        while here[0] == kill_in and step == kill_at:
            if list(killed_folder().glob("checkpoints/step_*")):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
        return rate_at(step, section)

    def killed_folder() -> Path:
        return job.folder

    loop.train, loop.learning_rate_at = train_here, rate_or_death
    while True:
        job = connection.recv()
        try:
            run_under_leases(job)
            connection.send(None)
        except Exception as problem:
            connection.send(f"{type(problem).__name__}: {problem}")
