"""Ray nodes as a cluster has them, on one machine: each a tree of processes that can be killed whole and comes back as a service.

With network namespaces (`Host`) they have their own addresses, interfaces and host names; without, all share this machine's.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
# A node that lost its head gives up after so many seconds, and its service starts it again.
RECONNECT_SECONDS = 20


@dataclass
class Host:
    """A network namespace with one interface `echo0` at `address`; empty for the machine itself."""

    name: str = ""
    address: str = "127.0.0.1"
    mounts: list[str] = field(default_factory=list)  # commands that this host alone sees the effect of

    @property
    def prefix(self) -> list[str]:
        """What runs a command on this host, by the host's own name."""
        if not self.name:
            return []
        named = "; ".join([f"hostname {self.name}", *self.mounts, 'exec "$@"'])
        return ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", named, "sh"]


@contextlib.contextmanager
def two_hosts(first: str = "10.77.0.1", second: str = "10.77.0.2"):
    """Two hosts joined by a cable (a veth pair); taken away at the end. Needs root and iproute2."""
    hosts = [
        Host(f"echo-{os.getpid()}-{letter}", address) for letter, address in zip("ab", (first, second), strict=True)
    ]
    a, b = hosts
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        _ip("link", "add", "echo0", "netns", a.name, "type", "veth", "peer", "name", "echo0", "netns", b.name)
        for host in hosts:
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "echo0")
            _ip("-n", host.name, "link", "set", "echo0", "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Node:
    """`ray start --block` that is started again when it ends, as systemd would, `pause` seconds later."""

    name: str
    head: str  # address and port of the head; this node is it if `is_head`
    host: Host = field(default_factory=Host)
    is_head: bool = False
    cpus: int = 1
    pause: float = 2.0
    folder: Path = Path("/tmp")
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stopped, self._held = threading.Event(), threading.Event()
        self.process: subprocess.Popen | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def kill(self, back: bool = True) -> None:
        """Everything of this node at once, as when the machine loses its power; it stays away unless `back`."""
        if not back:
            self._held.set()
        if self.process:
            kill_tree(self.process.pid)

    def come_back(self) -> None:
        self._held.clear()

    def stop(self) -> None:
        self._stopped.set()
        if self.process:
            kill_tree(self.process.pid)
        self._thread.join()

    def command(self) -> list[str]:
        port = self.head.rpartition(":")[2]
        where = (
            ["--head", f"--port={port}", "--include-dashboard=false"] if self.is_head else [f"--address={self.head}"]
        )
        return [
            *self.host.prefix,
            *RAY,
            *where,
            f"--node-ip-address={self.host.address}",
            f"--node-name={self.name}",
            f"--num-cpus={self.cpus}",
            "--object-store-memory=100000000",
        ]

    def _serve(self) -> None:
        environment = os.environ | {
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_SECONDS),
            "RAY_AUTH_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            **self.environment,
        }
        while not self._stopped.is_set():
            if self._held.is_set():
                time.sleep(0.1)
                continue
            with open(self.folder / f"{self.name}.log", "ab") as log:
                self.process = subprocess.Popen(
                    self.command(), env=environment, stdout=log, stderr=log, start_new_session=True
                )
            self.process.wait()
            kill_tree(self.process.pid)
            self._stopped.wait(self.pause)


def wait_for_nodes(host: Host, head: str, count: int) -> None:
    """Return when the cluster at `head`, as `host` sees it, has `count` nodes."""
    code = (
        "import ray, sys, time\n"
        f"ray.init(address={head!r}, log_to_driver=False, logging_level='error')\n"
        f"while sum(n['Alive'] for n in ray.nodes()) < {count}: time.sleep(0.2)\n"
    )
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    deadline = time.monotonic() + 120
    while subprocess.run([*host.prefix, sys.executable, "-c", code], env=environment, capture_output=True).returncode:
        assert time.monotonic() < deadline, "the nodes did not come up"


def kill_tree(pid: int) -> None:
    """`kill -9` a process and all below it; Ray's workers are sessions of their own, so a group would not reach them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)
