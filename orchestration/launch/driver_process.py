"""The driver of a run as a process: started, watched and ended by the supervisor."""

import contextlib
import multiprocessing
import os
import signal
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import psutil

from ...models.common.errors import UserError, not_installed
from ...models.common.parent import end_with_parent
from ...pipeline.monitoring.heartbeat import heartbeat_times
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.stop_request import request_stop
from ...pipeline.stop_signal import SIGNALS, StopSignal
from ..jobs.cluster import ClusterUnavailable, is_reachable

POLL_SECONDS = 0.5
# A driver without contact to its cluster for so long is killed; the first contact may take longer than later ones.
SILENT_SECONDS, CONNECT_SECONDS = 30.0, 300.0
CHECK_SECONDS, MISSED_CHECKS = 1.0, 3  # of the port of the cluster's head
EXIT_SECONDS = 15.0  # for an interrupted driver to shut its cluster down
QUIET_SECONDS = 8.0  # without a change of any worker's heartbeat, after which a stopped driver is interrupted
LEAVE_SECONDS = 2.0  # for processes of an ended driver to leave by themselves
CLUSTER_LOST = 76  # exit code of a driver
DriverFunction = Callable[..., None]


@dataclass
class Attempt:
    """The outcome of one start of the driver: `failure` is None if its work is complete, `component` is what failed, "driver" or
    "head"."""

    failure: str | None = None
    component: str = "driver"
    trace: str = ""


class DriverProcess:
    """One driver process, watched by the supervisor."""

    def __init__(self, function: DriverFunction, arguments: tuple, run: RunFolder):
        context = multiprocessing.get_context("spawn")  # Ray and torch have threads, which do not survive a fork
        self._run = run
        self._heartbeat = context.Value("d", 0.0)
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run_driver, args=(function, arguments, self._heartbeat, sender), name="driver"
        )
        # A batch system may signal every process of a job. The driver and what it starts, Ray's processes above all, are to live
        # until the checkpoint is saved: the supervisor says when and how they end. They inherit the mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pid = self._process.pid
        sender.close()

    def watch(self, stop: StopSignal) -> Attempt:
        """Wait until the driver ends; kill it if it falls silent. Processes that it leaves behind are killed.

        Raises:
            UserError: raised by the driver.
        """
        started, requested = time.time(), _StopRequest(self._run, self._process)
        descendants: set[psutil.Process] = set()
        try:
            while self._process.is_alive():
                self._process.join(POLL_SECONDS)
                with contextlib.suppress(psutil.Error):
                    descendants.update(psutil.Process(self.pid).children(recursive=True))
                if stop.received:
                    requested.poll(stop.reason)
                    continue
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
            _end(descendants)
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


class _StopRequest:
    """Stops a driver after a stop signal: its workers are asked to save and exit; it is interrupted if none of them trains."""

    def __init__(self, run: RunFolder, process: BaseProcess):
        self._run, self._process = run, process
        self._asked_at = self._changed_at = self._interrupted_at = 0.0
        self._heartbeats: list[tuple[str, float]] = []

    def poll(self, reason: str) -> None:
        """Request the stop at the first call; at later calls interrupt, and finally kill, a driver that has nothing to wait for."""
        now = time.monotonic()
        if not self._asked_at:
            self._asked_at = self._changed_at = now
            with contextlib.suppress(UserError):  # a full disk: no checkpoint can be saved either
                request_stop(self._run, reason)
        heartbeats = heartbeat_times(self._run)
        if heartbeats != self._heartbeats:
            self._heartbeats, self._changed_at = heartbeats, now
        if self._interrupted_at:
            if now - self._interrupted_at > EXIT_SECONDS:
                self._process.kill()
        # A driver that has just ended has no process id any more; one that is alive keeps it until it is waited for here.
        elif now - self._changed_at > QUIET_SECONDS and self._process.is_alive() and self._process.pid:
            self._interrupted_at = now
            os.kill(self._process.pid, signal.SIGINT)


def _end(processes: set[psutil.Process]) -> None:
    """Kill the remaining descendants of a driver: the agents of a local Ray cluster outlive it by most of a minute."""
    _, alive = psutil.wait_procs(processes, timeout=LEAVE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=LEAVE_SECONDS)


def _run_driver(function: DriverFunction, arguments: tuple, heartbeat: Synchronized, connection: Connection) -> None:
    """Run `function` in the driver's process, which ends with its supervisor, and send the outcome."""
    end_with_parent()
    outcome: tuple[Any, ...] = ("done", "", "")
    driver_heartbeat = DriverHeartbeat(heartbeat)
    try:
        function(*arguments, on_cluster=driver_heartbeat.on_cluster)
    except ClusterUnavailable as error:
        outcome = ("away", str(error), "")
    except UserError as error:
        outcome = ("user", str(error), "")
    except ModuleNotFoundError as error:
        missing = not_installed(error)
        outcome = ("user", str(missing), "") if missing else ("failed", str(error), traceback.format_exc())
    except KeyboardInterrupt:
        return
    except BaseException as error:
        lines = str(error).strip().splitlines()
        # Ray's messages can hold a page of advice.
        reason = textwrap.shorten(lines[-1] if lines else "", 300, placeholder=" ...")
        outcome = ("failed", f"{type(error).__name__}: {reason}", traceback.format_exc())
    connection.send(outcome)


class DriverHeartbeat(threading.Thread):
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
        try:
            yield
        finally:
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
