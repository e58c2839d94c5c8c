"""Checks on every worker of a worker group before its first step; the node that fails is named in one line."""

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...models.common.errors import UserError
from . import node_checks

LOCAL_FREE_BYTES = 2**28  # for Ray's session and logs
# Bytes a parameter: weights, AdamW's moments and the consolidated weights in fp32, twice while a checkpoint replaces another.
CHECKPOINT_BYTES = 2 * 16
CALL_SECONDS = 120.0
GPU_SECONDS = 30.0

Call = Callable[..., list[Any]]


class WorkerGroup:
    """The workers of a worker group, for the preflight: `run(function, arguments of each rank)` returns results by rank.

    Attributes:
        nodes, addresses: name and IP address of the node of each rank.
    """

    def __init__(self, nodes: Sequence[str], addresses: Sequence[str], run: Call):
        self.nodes, self.addresses = list(nodes), list(addresses)
        self._run = run

    def run(self, function: Callable[..., Any], arguments: Sequence[tuple] | None = None) -> list[Any]:
        """Call `function` on each rank, by default without arguments; returns the results by rank."""
        return self._run(function, arguments or [()] * len(self.nodes))

    def name(self, rank: int) -> str:
        """The name of a rank in messages."""
        return f"node {self.nodes[rank]} (rank {rank})"

    def first_ranks(self) -> list[int]:
        """The first rank of every node."""
        return [self.nodes.index(node) for node in dict.fromkeys(self.nodes)]


def check_nodes(group: WorkerGroup, run_path: Path, parameters: int, gpus: bool) -> None:
    """Check everything that needs no process group.

    Raises:
        UserError: versions that differ, a disk that is full, storage that is not shared, a port that is closed, a GPU that fails.
    """
    compare_versions(group)
    check_disks(group, run_path, parameters)
    check_shared_storage(group, run_path)
    check_ports(group)
    if gpus:
        for rank, fault in enumerate(_gpu_faults(group)):
            if fault:
                raise UserError(f"{group.name(rank)} {fault}: take the node out of the cluster, or free the GPU")


def check_all_reduce(group: WorkerGroup) -> None:
    """Check the first collective of the process group, which has a known result.

    Raises:
        UserError: a rank got another result.
    """
    for rank, fault in enumerate(group.run(node_checks.all_reduce_fault)):
        if fault:
            raise UserError(f"{group.name(rank)}: {fault}; check the network between the nodes")


def compare_versions(group: WorkerGroup) -> None:
    """Check that every worker has this machine's versions of the packages and of Echo-LM's source.

    Raises:
        UserError: a worker has another version.
    """
    expected = node_checks.versions()
    for rank, versions in enumerate(group.run(node_checks.versions)):
        for package, version in expected.items():
            if versions.get(package) != version:
                raise UserError(
                    f"{group.name(rank)} has {package} {versions.get(package)}, this machine has {version}: "
                    "install the same on every node"
                )


def check_disks(group: WorkerGroup, run_path: Path, parameters: int) -> None:
    """Check that every node has enough free disk space for a checkpoint of a model with `parameters` parameters.

    Raises:
        UserError: a disk has too little free space.
    """
    needed = CHECKPOINT_BYTES * parameters
    for rank, free_by_path in enumerate(group.run(node_checks.free_bytes, [(str(run_path),)] * len(group.nodes))):
        for path, free in free_by_path.items():
            least = needed if path == str(run_path) else LOCAL_FREE_BYTES
            if free < least:
                raise UserError(
                    f"{group.name(rank)} has {free / 1e6:.1f} MB free at {path}, the run needs {least / 1e6:.1f} MB: free some"
                )


def check_shared_storage(group: WorkerGroup, run_path: Path) -> None:
    """Check that every worker sees a file of this machine in the run folder, and this machine a file of every worker."""
    folder, token = str(run_path), uuid.uuid4().hex[:12]
    own_mark, worker_marks = f".preflight.{token}", [f".preflight.{token}.{rank}" for rank in range(len(group.nodes))]
    not_shared = f"does not share {folder} with this machine: name --runs and --data on storage that all nodes mount"
    try:
        if fault := node_checks.write_mark(folder, own_mark):
            raise UserError(f"{folder}: this machine {fault}")
        for rank, missing in enumerate(group.run(node_checks.missing_marks, [(folder, [own_mark])] * len(group.nodes))):
            if missing:
                raise UserError(f"{group.name(rank)} {not_shared}")
        for rank, fault in enumerate(group.run(node_checks.write_mark, [(folder, mark) for mark in worker_marks])):
            if fault:
                raise UserError(f"{group.name(rank)}: {folder} {fault}; it must be on storage that all nodes share")
        if unseen := node_checks.missing_marks(folder, worker_marks):
            raise UserError(f"{group.name(worker_marks.index(unseen[0]))} {not_shared}")
    finally:
        for mark in (own_mark, *worker_marks):
            (run_path / mark).unlink(missing_ok=True)


def check_ports(group: WorkerGroup) -> None:
    """Check that every node can connect to a port of every node, at the addresses that Ray uses."""
    first_ranks = group.first_ranks()
    ports = group.run(node_checks.listen, [(address,) for address in group.addresses])
    peers = [(group.addresses[rank], ports[rank]) for rank in first_ranks]
    for rank, failures in enumerate(group.run(node_checks.unreachable_peers, [(peers,)] * len(group.nodes))):
        if failures:
            raise UserError(
                f"{group.name(rank)} cannot connect to {failures[0]}: open all ports between the nodes, "
                "or start Ray with the --node-ip-address of a network they share"
            )


def _gpu_faults(group: WorkerGroup) -> list[str | None]:
    """The GPU faults that persist for `GPU_SECONDS`: a replaced process frees its memory with a delay."""
    deadline = time.monotonic() + GPU_SECONDS
    while any(faults := group.run(node_checks.gpu_fault)) and time.monotonic() < deadline:
        time.sleep(1)
    return faults
