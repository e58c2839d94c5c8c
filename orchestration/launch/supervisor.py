"""Outside Ray: keeps a pipeline's process going until the run is complete.

The pipeline runs in a process of its own, the driver, which Ray takes with it when a cluster dies. It is started again from the
run's files when it dies, falls silent, or loses its cluster; a cluster of its own comes back with it, an existing one is waited
for. A user's mistake ends both, in one line.
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
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from tenacity import Retrying, retry_if_result, stop_after_delay, wait_exponential

from ...models.common.errors import UserError
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.supervision import record_event
from ..jobs.cluster import ClusterAway
from ..progress.bars import console

POLL_SECONDS = 0.5
# A driver that could not ask its cluster for so long is ended; the first answer may take longer than later ones.
SILENT_SECONDS, CONNECT_SECONDS = 30.0, 300.0
LOOK_SECONDS, MISSED_LOOKS = 1.0, 3  # at the port of the cluster's head
LEAVE_SECONDS = 20.0  # that an interrupted driver has to put its cluster away
CLUSTER_LOST = 76  # exit code of a driver
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
Drive = Callable[..., None]


@dataclass
class Attempt:
    """How a driver ended: `lost` is None if its work is done."""

    lost: str | None = None
    what: str = "driver"
    trace: str = ""


def supervise(
    run: RunFolder,
    config: RunConfig,
    drive: Drive,
    arguments: tuple,
    *,
    address: str | None,
    progress: Callable[[], Any],
) -> None:
    """Run `drive(*arguments, on_cluster)` in a process until it returns, starting it again whenever it is lost.

    Args:
        drive: enters the context `on_cluster()` while it is connected to a cluster.
        address: `host:port` of an existing cluster; None if the driver makes one of its own.
        progress: a value that changes when the run gets on.

    Raises:
        UserError: the driver's own; or it was lost more than `run.max_restarts` times in a row without getting on.
    """
    number, in_vain, before, away_since = 0, 0, progress(), None
    reason = "start"
    while True:
        number += 1
        driver = _Driver(drive, arguments)
        record_event(run, "attempt", number=number, reason=reason, pid=driver.pid)
        attempt = driver.watch()
        if attempt.lost is None:
            return
        reason, name = attempt.lost, address or socket.gethostname()
        record_event(run, "lost", what=attempt.what, name=name, message=attempt.lost)
        console.print(f"{run.path}: {attempt.lost}; starting again from its files", markup=False)
        now = progress()
        if now != before:
            before, in_vain, away_since = now, 0, None
        if attempt.what == "head" and address:  # as often as it takes, but not for ever
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > config.run.cluster_wait_seconds:
                raise UserError(_given_up(run, attempt))
            time.sleep(FIRST_PAUSE)
            wait_for_cluster(address, config.run.cluster_wait_seconds)
            continue
        in_vain += 1
        if in_vain > config.run.max_restarts:
            raise UserError(_given_up(run, attempt))
        if in_vain > 1:
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (in_vain - 2)))


def _given_up(run: RunFolder, attempt: Attempt) -> str:
    trace = f"\n{attempt.trace}" if attempt.trace else ""
    return (
        f"{run.path} was started again and again without getting on (last: {attempt.lost}); what it made is kept, "
        f"the same command goes on from it{trace}"
    )


def wait_for_cluster(address: str, seconds: float) -> None:
    """Return when something answers at `address`.

    Raises:
        UserError: nothing did for so long.
    """
    if answers(address):
        return
    console.print(f"waiting up to {seconds / 60:.0f} min for the Ray cluster at {address}")
    waiting = Retrying(
        retry=retry_if_result(lambda there: not there),
        wait=wait_exponential(multiplier=0.5, max=10),
        stop=stop_after_delay(seconds),
        retry_error_callback=lambda state: False,
    )
    if not waiting(answers, address):
        raise UserError(
            f"no Ray cluster answers at {address} for {seconds:.0f} s (run.cluster_wait_seconds): start one with "
            "`ray start --head`, then run the same command again"
        )


def answers(address: str) -> bool:
    """Whether a port is open at `host:port`; an address of another form cannot be asked and counts as open."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


class _Driver:
    """One process of the pipeline."""

    def __init__(self, drive: Drive, arguments: tuple):
        context = multiprocessing.get_context("spawn")  # Ray and torch have threads, which do not survive a fork
        self._record = context.Value("d", 0.0)
        self._ours, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_drive, args=(drive, arguments, self._record, theirs), name="driver")
        self._process.start()
        self.pid = self._process.pid
        theirs.close()

    def watch(self) -> Attempt:
        """Wait until it ends, or end it.

        Raises:
            UserError: the driver's.
        """
        started = time.time()
        try:
            while self._process.is_alive():
                self._process.join(POLL_SECONDS)
                heartbeat = self._record.value
                silent = time.time() - (heartbeat or started)
                if silent > (SILENT_SECONDS if heartbeat else CONNECT_SECONDS):
                    return Attempt(f"the driver was silent for {silent:.0f} s")
        except KeyboardInterrupt:
            self._process.join(LEAVE_SECONDS)  # the terminal interrupted it too
            raise
        finally:
            if self._process.is_alive():
                self._process.kill()
            self._process.join()
        return self._outcome()

    def _outcome(self) -> Attempt:
        try:
            kind, message, trace = self._ours.recv()
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


def _drive(drive: Drive, arguments: tuple, heartbeat: Synchronized, connection: Connection) -> None:
    """In the driver's process: ends with its supervisor, and tells it what came out."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    outcome: tuple[Any, ...] = ("done", "", "")
    pulse = _Pulse(heartbeat)
    try:
        drive(*arguments, on_cluster=pulse.on_cluster)
    except ClusterAway as error:
        outcome = ("away", str(error), "")
    except UserError as error:
        outcome = ("user", str(error), "")
    except KeyboardInterrupt:
        return
    except BaseException as error:
        lines = str(error).strip().splitlines()
        outcome = ("failed", f"{type(error).__name__}: {lines[-1] if lines else ''}", traceback.format_exc())
    connection.send(outcome)


class _Pulse(threading.Thread):
    """Beats from the first connection to a cluster on; while there is one, only as long as its head answers and knows us."""

    def __init__(self, heartbeat: Synchronized):
        super().__init__(daemon=True, name="pulse")
        self._value, self._asks = heartbeat, threading.Lock()
        self._node = self._head = ""

    @contextmanager
    def on_cluster(self) -> Iterator[None]:
        """To be entered right after the connection, and left before it is closed."""
        import ray

        context = ray.get_runtime_context()
        self._node, self._head = context.get_node_id(), context.gcs_address
        if not self.is_alive():
            self.start()
        yield
        with self._asks:
            self._node = ""

    def run(self) -> None:
        import ray

        missed = 0
        while True:
            with self._asks:
                if self._node:
                    missed = 0 if answers(self._head) else missed + 1
                    if missed >= MISSED_LOOKS:
                        os._exit(CLUSTER_LOST)  # a clean shutdown would wait for the dead
                    # A head that was started again at the same address knows nothing of us, and Ray does not tell.
                    if not missed and self._node not in [node["NodeID"] for node in ray.nodes() if node["Alive"]]:
                        os._exit(CLUSTER_LOST)
            self._value.value = time.time()
            time.sleep(LOOK_SECONDS)
