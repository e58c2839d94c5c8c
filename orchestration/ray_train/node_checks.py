"""Checks of a node before a worker group's first step; each function runs in a worker's process.

They return plain values, which `preflight.py` compares to name the node that fails.
"""

import hashlib
import os
import shutil
import socket
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from ...models.common.files import write_text
from ...pipeline.monitoring.node import NODE_VARIABLE

COMPARED = ("torch", "deepspeed", "numpy", "safetensors", "ray")
PACKAGES = ("kernels", "models", "data_prep", "evals", "pipeline", "orchestration")
CONNECT_SECONDS = 10.0
VISIBLE_SECONDS = 30.0  # a shared file system may show a new file late
PROBE = 512  # side of the matrices that a GPU multiplies


def set_worker_environment(node: str, group: str, address: str) -> str | None:
    """Set the environment variables of a worker: the node's name, the worker group's token, and the network interface.

    Returns:
        the name of the interface for gloo; None if none is set and no interface has the address `address`.
    """
    from ...pipeline.monitoring.heartbeat import WORKER_GROUP_VARIABLE

    os.environ |= {NODE_VARIABLE: node, WORKER_GROUP_VARIABLE: group}
    interface = interface_of(address)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if interface:
            os.environ.setdefault(variable, interface)
    return os.environ.get("GLOO_SOCKET_IFNAME")


def interface_of(address: str) -> str | None:
    """The network interface with the IP address `address`; by default gloo and NCCL may use one that other nodes cannot reach."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in addresses):
            return name
    return None


def versions() -> dict[str, str]:
    """Package versions that must agree between workers, and a hash of Echo-LM's source."""
    package_versions = {"echo-lm source": source_hash()}
    for package in COMPARED:
        try:
            package_versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            package_versions[package] = "missing"
    return package_versions


def source_hash(root: Path = Path(__file__).parents[2]) -> str:
    """Hash of Echo-LM's Python files in an installation below `root`; 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def free_bytes(run_path: str) -> dict[str, int]:
    """Free bytes on the disks of the run folder and of Ray's session, by path."""
    free = {}
    for path in (run_path, tempfile.gettempdir()):
        if Path(path).is_dir():
            free[path] = shutil.disk_usage(path).free
    return free


def write_mark(run_path: str, mark: str) -> str | None:
    """Write the file `mark` into the run folder; returns the error, or None."""
    try:
        write_text(Path(run_path) / mark, mark)
    except Exception as error:
        return f"cannot write there ({str(error).splitlines()[0]})"
    return None


def missing_marks(run_path: str, marks: list[str]) -> list[str]:
    """The marks that this node does not see within `VISIBLE_SECONDS`."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    missing = list(marks)
    while True:
        missing = [mark for mark in missing if not _holds(Path(run_path) / mark, mark)]
        if not missing or time.monotonic() > deadline:  # checked once at least, however late
            return missing
        time.sleep(0.2)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except OSError:
        return False


def listen(address: str) -> int:
    """Open a port at `address` that accepts connections for a minute; returns its number."""
    import threading

    server = socket.create_server((address, 0), backlog=1024)
    server.settimeout(60)

    def accept_all() -> None:
        with server:
            try:
                while True:
                    connection, _ = server.accept()
                    connection.close()
            except OSError:
                return

    threading.Thread(target=accept_all, daemon=True).start()
    return server.getsockname()[1]


def unreachable_peers(peers: list[tuple[str, int]]) -> list[str]:
    """The peers (address, port) that this node cannot connect to, each with the reason."""
    failed = []
    for address, port in peers:
        try:
            socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            failed.append(f"{address} ({error.strerror or error})")
    return failed


def gpu_fault() -> str | None:
    """The fault of this worker's GPU: wrong products, or memory in use by others; None if it has none."""
    import torch

    if not torch.cuda.is_available():
        return "sees no GPU"
    try:
        ones = torch.ones(PROBE, PROBE, device="cuda", dtype=torch.bfloat16)
        if not bool(((ones @ ones) == PROBE).all()):
            return "its GPU multiplies wrongly"
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        return f"its GPU does not work ({str(error).splitlines()[0]})"
    if free < 0.8 * total:
        return f"only {free / 2**30:.0f} of its GPU's {total / 2**30:.0f} GiB are free"
    return None


def all_reduce_fault() -> str | None:
    """All-reduce a vector with one known number per rank; returns the fault of the sum, or None."""
    import torch
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    vector = torch.zeros(world, dtype=torch.float64, device=device)
    vector[rank] = rank + 1
    dist.all_reduce(vector)
    sums: list[Any] = vector.tolist()
    wrong = [other for other in range(world) if sums[other] != other + 1]
    return f"an all-reduce lost the numbers of ranks {wrong}" if wrong else None
