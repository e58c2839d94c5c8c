"""Leases: exclusive claims on work, as files with a heartbeat in a folder that all workers share.

A lease is a small JSON file that its holder touches every few seconds. It is free again when the holder releases it, when
the holder's process is dead (same machine), or when the heartbeat has been silent for too long (any machine). Work under a
lease should still end in a rename to its final name: a holder that was suspended beyond its expiry and its successor then write
the same whole file twice.
"""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from ...models.common.cached_files import IsNotRegular, read_regular, stamp
from ...models.common.files import write_json

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
MOST_LEASE_BYTES = 1 << 16


class Lease:
    """A held lease. As a context manager it is released, and its heartbeat stops, when the block ends."""

    def __init__(self, path: Path, owner: str, heartbeat_seconds: float):
        self.path, self.owner = path, owner
        self._stopped = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, args=(heartbeat_seconds,), daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another process took over, because this one was silent for too long."""
        return self._lost

    def release(self) -> None:
        """Release the lease; does nothing if it was lost or released before."""
        self._stopped.set()
        self._thread.join()
        with _guard(self.path):
            if _owner(self.path) == self.owner:
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _renew(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            try:
                with _guard(self.path):
                    if _owner(self.path) != self.owner:
                        self._lost = True
                        return
                    os.utime(self.path)
            except OSError:
                continue  # a shared disk that is briefly unavailable; the next heartbeat may succeed


def claim(
    path: Path | str, *, expiry_seconds: float = EXPIRY_SECONDS, heartbeat_seconds: float = HEARTBEAT_SECONDS
) -> Lease | None:
    """Take the lease at `path`; None while another process holds it.

    Args:
        path: of the lease's file, conventionally `<what>.lease` beside the result; its folder is made.
        expiry_seconds: silence after which a holder counts as dead. The same for all that claim one path.
        heartbeat_seconds: between two heartbeats; well below the expiry.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _guard(path):
        if _is_held(path, expiry_seconds):
            return None
        owner = uuid.uuid4().hex
        process = psutil.Process()
        record = {
            "owner": owner,
            "machine": _machine(),
            "pid": process.pid,
            "born": process.create_time(),
            "claimed": time.time(),
        }
        write_json(path, record)
    return Lease(path, owner, heartbeat_seconds)


def holder(path: Path | str, *, expiry_seconds: float = EXPIRY_SECONDS) -> dict[str, Any] | None:
    """The holder of the lease at `path` (`owner`, `machine`, `pid`, `claimed` in unix seconds), or None if it is free."""
    path = Path(path)
    return _read(path) if _is_held(path, expiry_seconds) else None


def looks_held(path: Path | str) -> bool:
    """Whether the lease at `path` is held, judged by this machine's clock and without writing anything, for processes that only
    read.

    `holder` asks the file system's clock, which takes a file in the folder.
    """
    record, heartbeat = _read(Path(path)), stamp(path)
    if record is None or heartbeat is None or _is_dead(record):
        return False
    return time.time() - heartbeat[0] / 1e9 < EXPIRY_SECONDS


def _is_held(path: Path, expiry_seconds: float) -> bool:
    record = _read(path)
    if record is None:
        return False
    if _is_dead(record):
        return False
    try:
        return _file_system_time(path.parent) - path.stat().st_mtime < expiry_seconds
    except FileNotFoundError:
        return False


def _is_dead(record: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    here = record.get("machine") == _machine()
    return here and not _is_running(record.get("pid", -1), record.get("born", 0.0))


def _is_running(pid: int, born: float) -> bool:
    """Whether the process with this id and creation time still runs; ids are reused."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - born) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _machine() -> str:
    """This host's name and its namespace of process ids: containers may share the first, never the second."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{os.readlink(space) if space.exists() else ''}"


def _file_system_time(folder: Path) -> float:
    """The current time by the file system's clock in `folder`: hosts that share a disk may differ in theirs."""
    probe = folder / f".clock.{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _guard(path: Path) -> FileLock:
    """The lock on a folder's leases; the system releases it when its process dies."""
    return FileLock(path.parent / ".leases.lock")


def _owner(path: Path) -> str | None:
    record = _read(path)
    return record.get("owner") if record else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(read_regular(path, MOST_LEASE_BYTES))
    except (FileNotFoundError, IsNotRegular, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
