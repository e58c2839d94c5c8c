"""Running one cell of a study, in a process of its own since DeepSpeed trains only once per process."""

import os
import sys
import threading
import time
from pathlib import Path

from ...evals.config import load_suite
from ...evals.layout import complete_checkpoints, result_path
from ...evals.runner import run_suite
from ...models.common.run_layout import MODEL
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder
from ...pipeline.visible_gpus import visible_gpus
from ..jobs.leases import claim
from .plan import Plan, StudyCell
from .results import collect, read_result, write_result

HELD_ELSEWHERE = 75  # exit code: another process holds the cell (EX_TEMPFAIL)


def run_cell(plan: Plan, cell: StudyCell, config: RunConfig, folder: Path, dataset: Path, started: float) -> bool:
    """Train the cell, evaluate its last checkpoint, write its record; resumes an earlier attempt.

    Args:
        folder: of the cell's run; its lease lies beside it.
        started: when this attempt began (seconds since the epoch); the record counts from there.

    Returns:
        whether the cell is done; False if another process holds it.

    Raises:
        UserError: a folder of another run, damaged data, or a loss that is not finite.
    """
    from ...pipeline.loop import train

    run = RunFolder(folder)
    lease = claim(lease_path(folder))
    if lease is None:
        return False
    with lease:
        if (stored := read_result(result_file(folder))) is not None and stored.identity == config.identity():
            return True
        run.prepare(config, dataset)
        if not run.finished():
            train(run.path)
        checkpoint, record = list(complete_checkpoints(run.path))[-1]
        device = "cuda" if config.run.device == "cuda" else "cpu"
        for name in config.evaluation.suites:
            suite = load_suite(name)
            output = result_path(run.path, checkpoint.name, suite.name)
            model = checkpoint / MODEL
            run_suite(model, suite, dataset, output, step=record["step"], tokens=record["tokens"], device=device)
        result = collect(plan, cell, run.path, config.identity(), config.train.learning_rate, started)
        write_result(result_file(folder), result)
    return True


def lease_path(folder: Path) -> Path:
    """The lease file of a cell: `leases/<cell>.lease` beside the folder of runs."""
    return folder.parent.parent / "leases" / f"{folder.name}.lease"


def result_file(folder: Path) -> Path:
    """The completion file of a cell."""
    return folder / "cell.json"


def cell_process(
    plan: Plan, cell: StudyCell, config: RunConfig, folder: Path, dataset: Path, started: float, gpu: int | None
) -> None:
    """Target of a spawned process: `run_cell` with its output in `<cell>.log`; exits when its parent ends.

    Exit code 0 if done, `HELD_ELSEWHERE` if another process holds the cell; any other code is a failure, see the log.
    """
    parent = os.getppid()

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # a restarted supervisor claims this cell again

    threading.Thread(target=leave_with_parent, daemon=True).start()
    log = open_log(folder)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus([gpu])
    sys.exit(0 if run_cell(plan, cell, config, folder, dataset, started) else HELD_ELSEWHERE)


def open_log(folder: Path) -> int:
    """A file descriptor that appends to the cell's log."""
    path = log_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def log_file(folder: Path) -> Path:
    """The log of a cell's attempts: `logs/<cell>.log` beside the folder of runs."""
    return folder.parent.parent / "logs" / f"{folder.name}.log"
