"""A Ray cluster for the duration of a command: an existing one at an address, or a local one that ends with the command.

A local cluster listens on loopback only. Both require Ray's token (`RAY_AUTH_MODE=token`): anyone who reaches a cluster without
one can run code on it.
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from ...models.common.errors import UserError
from ...models.common.validation import first_line
from ..progress.bars import console

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", ""),
}
LEAVE_SECONDS = 0.5  # seconds in which the processes of a local cluster may end by themselves
CHECK_SECONDS = 1.0  # between two tries to reach a cluster
OBJECT_STORE_BYTES = 256 * 2**20
TOKEN = Path(".ray") / "auth_token"  # in the user's home, where Ray looks for it


class ClusterUnavailable(UserError):
    """No connection to an existing cluster: it may be starting, or have ended."""


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """Context connected to the cluster at `address`, or to a new one on loopback that ends with this process.

    Raises:
        ClusterUnavailable: no cluster answers at `address`.
        UserError: the cluster requires another token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is None:
        # Otherwise Ray uses the machine's outer address even if told to use loopback. Read when Ray is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        make_token()
    import ray
    from ray.exceptions import AuthenticationError

    away = f"no Ray cluster answers at {address}: start one with `ray start --head` or leave --address out"
    if address and not is_reachable(address):  # Ray would try for minutes
        raise ClusterUnavailable(away)
    environment = {name: value for name, value in WORKER_ENVIRONMENT.items() if value}
    local = {
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
        "_node_name": socket.gethostname(),
    }
    others = set(psutil.Process().children())
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": environment},
            **({} if address else local),
        )
    except AuthenticationError as error:
        raise UserError(
            f"the Ray cluster at {address} wants another token ({first_line(error)}): copy ~/{TOKEN} of its head to this "
            "machine, or set RAY_AUTH_MODE=disabled if it was started so"
        ) from error
    except Exception as error:  # a head that is starting or ending raises many kinds of errors
        if address is None:
            raise
        raise ClusterUnavailable(
            f"the Ray cluster at {address} took no connection from this machine ({first_line(error)}): it may be starting or "
            f"ending; and a driver needs a node of the cluster beside it, `ray start --address={address}`"
        ) from error
    try:
        yield
    finally:
        # In a driver Ray's processes have SIGTERM blocked (see driver_process.py); Ray would wait for each of them.
        ending = threading.Timer(LEAVE_SECONDS, _kill_children, (others,))
        if address is None:
            ending.start()
        ray.shutdown()
        ending.cancel()


def _kill_children(others: set[psutil.Process]) -> None:
    """Kill the processes that this one started, with all below them, except `others`."""
    for child in set(psutil.Process().children()) - others:
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):  # it ends by itself
            below = child.children(recursive=True)
        for process in (*below, child):
            with contextlib.suppress(psutil.Error):
                process.kill()


def wait_for_cluster(address: str, seconds: float, stopped: Callable[[], bool] = lambda: False) -> None:
    """Wait until the cluster's port at `address` is open, or until `stopped()`.

    Raises:
        UserError: it stays closed for `seconds`.
    """
    if is_reachable(address):
        return
    console.print(f"waiting up to {seconds / 60:.0f} min for the Ray cluster at {address}")
    waiting = Retrying(
        retry=retry_if_result(lambda reachable: not reachable and not stopped()),
        wait=wait_fixed(CHECK_SECONDS),
        stop=stop_after_delay(seconds),
        retry_error_callback=lambda state: False,
    )
    if not waiting(is_reachable, address) and not stopped():
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


def make_token() -> None:
    """Create this user's authentication token for Ray unless there is one; readable only by the user, unlike Ray's own."""
    if os.environ["RAY_AUTH_MODE"] != "token" or os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    try:
        path = Path.home() / TOKEN
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        path.chmod(0o600)
    except (OSError, RuntimeError):  # no home, or one that cannot be written: the token lives as long as this cluster
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
