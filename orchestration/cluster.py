"""A Ray cluster for the length of a command: the existing one at an address, or a local one that ends with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..models.errors import UserError

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", ""),
}
OBJECT_STORE_BYTES = 256 * 2**20


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one on loopback that dies with this process.

    Raises:
        UserError: no cluster answers at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    environment = {name: value for name, value in WORKER_ENVIRONMENT.items() if value}
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the cluster listens on loopback only
    import ray

    local = {
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": environment},
            **({} if address else local),
        )
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at {address}: start one with `ray start --head` or leave --address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
