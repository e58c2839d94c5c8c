"""The supervisor of a run: a process outside Ray that restarts the driver until the run is complete.

The driver, which runs the pipeline, is a process of its own, since Ray ends it when a cluster dies. It is restarted from the run's
files when it dies, falls silent, or loses its cluster; a local cluster restarts with it, an existing one is waited for. A
`UserError` of the driver ends both processes, and so does SIGTERM or SIGUSR1, after the workers have saved a checkpoint.
"""

import socket
import time
from collections.abc import Callable
from typing import Any

from ...models.common.errors import UserError
from ...models.common.retries import RestartLimit, pause_seconds
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.stop_request import clear_stop_request
from ...pipeline.run.supervision import record_event
from ...pipeline.stop_signal import StopSignal
from ..jobs.cluster import wait_for_cluster
from ..progress.bars import console
from .driver_process import Attempt, DriverFunction, DriverProcess

POLL_SECONDS = 0.5


def supervise(
    run: RunFolder,
    config: RunConfig,
    function: DriverFunction,
    arguments: tuple,
    *,
    address: str | None,
    progress: Callable[[], Any],
) -> str:
    """Run `function(*arguments, on_cluster)` in a driver process until it returns; restart it after failures.

    At SIGTERM or SIGUSR1 the workers are asked to save a checkpoint and leave, and the driver ends with them.

    Args:
        function: enters the context `on_cluster()` while it is connected to a cluster.
        address: `host:port` of an existing cluster; None if the driver starts its own.
        progress: returns a value that changes with the run's progress.

    Returns:
        the name of the signal that ended it early; empty if the work is complete.

    Raises:
        UserError: the driver's own, or it failed more than `run.max_restarts` times in a row without progress.
    """
    with StopSignal() as stop:
        _supervise(run, config, function, arguments, address, progress, stop)
        return stop.reason


def _supervise(
    run: RunFolder,
    config: RunConfig,
    function: DriverFunction,
    arguments: tuple,
    address: str | None,
    progress: Callable[[], Any],
    stop: StopSignal,
) -> None:
    attempts, unreachable_since = 0, None
    limit = RestartLimit(config.run.max_restarts, progress)
    reason = "start"
    while not stop.received:
        attempts += 1
        clear_stop_request(run)
        driver = DriverProcess(function, arguments, run)
        record_event(run, "attempt", number=attempts, reason=reason, pid=driver.pid)
        attempt = driver.watch(stop)
        if attempt.failure is None or stop.received:
            return
        reason, name = attempt.failure, address or socket.gethostname()
        record_event(run, "lost", what=attempt.component, name=name, message=attempt.failure)
        console.print(f"{run.path}: {attempt.failure}; starting again from its files", markup=False)
        if limit.made_progress():
            unreachable_since = None
        if attempt.component == "head" and address:  # not limited in number, but in time
            unreachable_since = unreachable_since or time.monotonic()
            if time.monotonic() - unreachable_since > config.run.cluster_wait_seconds:
                raise UserError(_give_up_message(run, attempt))
            _pause(pause_seconds(1), stop)
            wait_for_cluster(address, config.run.cluster_wait_seconds, lambda: stop.received)
            continue
        pause = limit.after_failure()
        if pause is None:
            raise UserError(_give_up_message(run, attempt))
        _pause(pause, stop)


def _pause(seconds: float, stop: StopSignal) -> None:
    """Wait for a number of seconds, or until a stop signal."""
    end = time.monotonic() + seconds
    while not stop.received and (left := end - time.monotonic()) > 0:
        time.sleep(min(POLL_SECONDS, left))


def _give_up_message(run: RunFolder, attempt: Attempt) -> str:
    trace = f"\n{attempt.trace}" if attempt.trace else ""
    return (
        f"{run.path} was started again and again without getting on (last: {attempt.failure}); what it made is kept, "
        f"the same command goes on from it{trace}"
    )
