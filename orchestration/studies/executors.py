"""Executors of cells: processes on this machine's devices, or tasks placed by Ray."""

import multiprocessing
import os
import time
from fractions import Fraction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, Self

from ...models.common.files import read_json
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder
from .cell import HELD_ELSEWHERE, cell_process, log_file, open_log, run_cell
from .packing import Devices
from .plan import Plan, StudyCell


class Executor(Protocol):
    """Runs cells. Use as a context, at whose end running cells are stopped."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def start(self, plan: Plan, cell: StudyCell, config: RunConfig, folder: Path, dataset: Path) -> bool:
        """Start a cell; False if no device is free for it."""
        ...

    def ended(self) -> list[tuple[str, str | None]]:
        """Names of the cells that ended since the last call, each with its error or None.

        Without an error the cell need not be done: another process may hold it.
        """
        ...


class ProcessExecutor:
    """Runs cells as spawned processes, packed on `count` devices (GPUs if `cuda`, else cores)."""

    def __init__(self, count: int, cuda: bool):
        self._devices, self._cuda = Devices(count), cuda
        self._running: dict[str, tuple[BaseProcess, int, Fraction, Path]] = {}
        # Threads of this process make a fork unsafe, and DeepSpeed trains once a process.
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process, *_ in self._running.values():
            process.terminate()
        for process, *_ in self._running.values():
            process.join()

    def start(self, plan: Plan, cell: StudyCell, config: RunConfig, folder: Path, dataset: Path) -> bool:
        share = Fraction(1, cell.per_device)
        device = self._devices.reserve(share)
        if device is None:
            return False
        arguments = (plan, cell, config, folder, dataset, time.time(), device if self._cuda else None)
        process = self._context.Process(target=cell_process, args=arguments, name=cell.name, daemon=True)
        process.start()
        self._running[cell.name] = (process, device, share, folder)
        return True

    def ended(self) -> list[tuple[str, str | None]]:
        ended_cells = []
        for name, (process, device, share, folder) in list(self._running.items()):
            if process.is_alive():
                continue
            process.join()
            del self._running[name]
            self._devices.release(device, share)
            ended_cells.append(
                (name, None if process.exitcode in (0, HELD_ELSEWHERE) else _reason(folder, process.exitcode))
            )
        return ended_cells


class RayExecutor:
    """Runs cells as Ray tasks with a share of a GPU, or with cores; Ray queues tasks that do not fit. Needs a connected cluster."""

    def __init__(self) -> None:
        self._running: dict[Any, tuple[str, Path]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        for reference in self._running:
            ray.cancel(reference, force=True)

    def start(self, plan: Plan, cell: StudyCell, config: RunConfig, folder: Path, dataset: Path) -> bool:
        import ray

        hardware = plan.study.hardware
        gpu = hardware.device == "cuda"
        # max_calls: a fresh process for each cell. max_retries: failures are counted by the supervisor.
        task = ray.remote(
            num_gpus=1 / cell.per_device if gpu else 0,
            num_cpus=0 if gpu else hardware.threads / cell.per_device,
            max_calls=1,
            max_retries=0,
        )(_ray_cell)
        reference = task.remote(plan, cell, config, folder.resolve(), dataset.resolve())
        self._running[reference] = (cell.name, folder)
        return True

    def ended(self) -> list[tuple[str, str | None]]:
        import ray

        if not self._running:
            return []
        ended_cells = []
        for reference in ray.wait(list(self._running), num_returns=len(self._running), timeout=0)[0]:
            name, folder = self._running.pop(reference)
            try:
                ray.get(reference)
                ended_cells.append((name, None))
            except ray.exceptions.RayError as error:
                ended_cells.append((name, _reason(folder, None, str(error).strip().splitlines()[-1])))
        return ended_cells


def _ray_cell(plan: Plan, cell: StudyCell, config: RunConfig, folder: Path, dataset: Path) -> None:
    started = time.time()  # not when it was submitted, since Ray queues tasks
    log = open_log(folder)
    os.dup2(log, 1)
    os.dup2(log, 2)
    run_cell(plan, cell, config, folder, dataset, started)


def _reason(folder: Path, exitcode: int | None, message: str = "") -> str:
    """The reason why a cell's process failed, in one line: the recorded error, else the last line of its log."""
    recorded = RunFolder(folder).error_file
    if recorded.is_file():
        return read_json(recorded)["message"]
    if exitcode is not None and exitcode < 0:
        return f"killed by signal {-exitcode}"
    log = log_file(folder)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    # What libraries log at the exit comes after the error: "[rank0]:[W1126 ...] Warning: destroy_process_group() ...".
    lines = [line for line in lines if not line.startswith("[")] or lines
    return message or (lines[-1] if lines else f"exit code {exitcode}")
