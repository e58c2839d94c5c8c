"""The supervisor of a run: a process outside Ray that restarts the driver until the run is complete.

The driver, which runs the pipeline, is a process of its own, since Ray ends it when a cluster dies. It is restarted from the run's
files when it dies, falls silent, or loses its cluster; a local cluster restarts with it, an existing one is waited for. A
`UserError` of the driver ends both processes.
"""

import multiprocessing
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from ...models.common.errors import UserError
from ...models.common.retries import RestartLimit, pause_seconds
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.supervision import record_event
from ..jobs.cluster import ClusterUnavailable
from ..jobs.parent import end_with_parent
from ..progress.bars import console

POLL_SECONDS = 0.5
# A driver without contact to its cluster for so long is killed; the first contact may take longer than later ones.
SILENT_SECONDS, CONNECT_SECONDS = 30.0, 300.0
CHECK_SECONDS, MISSED_CHECKS = 1.0, 3  # of the port of the cluster's head
EXIT_SECONDS = 20.0  # for an interrupted driver to shut its cluster down
CLUSTER_LOST = 76  # exit code of a driver
DriverFunction = Callable[..., None]


@dataclass
class Attempt:
    """The outcome of a driver: `failure` is None if its work is complete, `component` what failed, "driver" or "head"."""

    failure: str | None = None
    component: str = "driver"
    trace: str = ""


def supervise(
    run: RunFolder,
    config: RunConfig,
    function: DriverFunction,
    arguments: tuple,
    *,
    address: str | None,
    progress: Callable[[], Any],
) -> None:
    """Run `function(*arguments, on_cluster)` in a driver process until it returns; restart it after failures.

    Args:
        function: enters the context `on_cluster()` while it is connected to a cluster.
        address: `host:port` of an existing cluster; None if the driver starts its own.
        progress: returns a value that changes with the run's progress.

    Raises:
        UserError: the driver's own, or it failed more than `run.max_restarts` times in a row without progress.
    """
    attempts, unreachable_since = 0, None
    limit = RestartLimit(config.run.max_restarts, progress)
    reason = "start"
    while True:
        attempts += 1
        driver = _Driver(function, arguments)
        record_event(run, "attempt", number=attempts, reason=reason, pid=driver.pid)
        attempt = driver.watch()
        if attempt.failure is None:
            return
        reason, name = attempt.failure, address or socket.gethostname()
        record_event(run, "lost", what=attempt.component, name=name, message=attempt.failure)
        console.print(f"{run.path}: {attempt.failure}; starting again from its files", markup=False)
        if limit.made_progress():
            unreachable_since = None
        if attempt.component == "head" and address:  # without a limit of restarts, but of time
            unreachable_since = unreachable_since or time.monotonic()
            if time.monotonic() - unreachable_since > config.run.cluster_wait_seconds:
                raise UserError(_give_up_message(run, attempt))
            time.sleep(pause_seconds(1))
            wait_for_cluster(address, config.run.cluster_wait_seconds)
            continue
        pause = limit.after_failure()
        if pause is None:
            raise UserError(_give_up_message(run, attempt))
        time.sleep(pause)


def _give_up_message(run: RunFolder, attempt: Attempt) -> str:
    trace = f"\n{attempt.trace}" if attempt.trace else ""
    return (
        f"{run.path} was started again and again without getting on (last: {attempt.failure}); what it made is kept, "
        f"the same command goes on from it{trace}"
    )


def wait_for_cluster(address: str, seconds: float) -> None:
    """Wait until the cluster's port at `address` is open.

    Raises:
        UserError: it stays closed for `seconds`.
    """
    if is_reachable(address):
        return
    console.print(f"waiting up to {seconds / 60:.0f} min for the Ray cluster at {address}")
    waiting = Retrying(
        retry=retry_if_result(lambda reachable: not reachable),
        wait=wait_fixed(CHECK_SECONDS),
        stop=stop_after_delay(seconds),
        retry_error_callback=lambda state: False,
    )
    if not waiting(is_reachable, address):
        raise UserError(
            f"no Ray cluster answers at {address} for {seconds:.0f} s (run.cluster_wait_seconds): start one with "
            "`ray start --head`, then run the same command again"
        )


def is_reachable(address: str) -> bool:
    """Whether the port at `host:port` is open; an address of another form cannot be checked and counts as open."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


class _Driver:
    """One driver process, watched by the supervisor."""

    def __init__(self, function: DriverFunction, arguments: tuple):
        context = multiprocessing.get_context("spawn")  # Ray and torch have threads, which do not survive a fork
        self._heartbeat = context.Value("d", 0.0)
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run_driver, args=(function, arguments, self._heartbeat, sender), name="driver"
        )
        self._process.start()
        self.pid = self._process.pid
        sender.close()

    def watch(self) -> Attempt:
        """Wait until the driver ends; kill it if it falls silent.

        Raises:
            UserError: raised by the driver.
        """
        started = time.time()
        try:
            while self._process.is_alive():
                self._process.join(POLL_SECONDS)
                heartbeat = self._heartbeat.value
                silent = time.time() - (heartbeat or started)
                if silent > (SILENT_SECONDS if heartbeat else CONNECT_SECONDS):
                    return Attempt(f"the driver was silent for {silent:.0f} s")
        except KeyboardInterrupt:
            self._process.join(EXIT_SECONDS)  # the terminal interrupted the driver too
            raise
        finally:
            if self._process.is_alive():
                self._process.kill()
            self._process.join()
        return self._outcome()

    def _outcome(self) -> Attempt:
        try:
            kind, message, trace = self._receiver.recv()
        except EOFError:  # killed, or ended by Ray's own code
            code = self._process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            if code == CLUSTER_LOST:
                return Attempt("the head of the Ray cluster is gone", "head")
            return Attempt(f"the driver {how}")
        if kind == "done":
            return Attempt()
        if kind == "user":
            raise UserError(message)
        if kind == "away":
            return Attempt(message, "head")
        return Attempt(f"the driver failed ({message})", trace=trace)


def _run_driver(function: DriverFunction, arguments: tuple, heartbeat: Synchronized, connection: Connection) -> None:
    """Run `function` in the driver's process, which ends with its supervisor, and send the outcome."""
    end_with_parent()
    outcome: tuple[Any, ...] = ("done", "", "")
    driver_heartbeat = _DriverHeartbeat(heartbeat)
    try:
        function(*arguments, on_cluster=driver_heartbeat.on_cluster)
    except ClusterUnavailable as error:
        outcome = ("away", str(error), "")
    except UserError as error:
        outcome = ("user", str(error), "")
    except KeyboardInterrupt:
        return
    except BaseException as error:
        lines = str(error).strip().splitlines()
        outcome = ("failed", f"{type(error).__name__}: {lines[-1] if lines else ''}", traceback.format_exc())
    connection.send(outcome)


class _DriverHeartbeat(threading.Thread):
    """Heartbeat of the driver from its first connection to a cluster on; stops the driver when the cluster's head is lost."""

    def __init__(self, heartbeat: Synchronized):
        super().__init__(daemon=True, name="driver-heartbeat")
        self._value, self._cluster_lock = heartbeat, threading.Lock()
        self._node = self._head = ""

    @contextmanager
    def on_cluster(self) -> Iterator[None]:
        """Context from right after the connection to a cluster until before its end."""
        import ray

        context = ray.get_runtime_context()
        self._node, self._head = context.get_node_id(), context.gcs_address
        if not self.is_alive():
            self.start()
        yield
        with self._cluster_lock:
            self._node = ""

    def run(self) -> None:
        import ray

        missed = 0
        while True:
            with self._cluster_lock:
                if self._node:
                    missed = 0 if is_reachable(self._head) else missed + 1
                    if missed >= MISSED_CHECKS:
                        os._exit(CLUSTER_LOST)  # a clean shutdown would wait for the dead cluster
                    # A head that was restarted at the same address does not list this node, and Ray reports nothing.
                    if not missed and self._node not in [node["NodeID"] for node in ray.nodes() if node["Alive"]]:
                        os._exit(CLUSTER_LOST)
            self._value.value = time.time()
            time.sleep(CHECK_SECONDS)
