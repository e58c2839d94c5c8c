"""Many short trainings in one process: starting processes and DeepSpeed is most of a small run's time."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist

from echo_lm.pipeline import loop
from tests.helpers import warm
from tests.helpers.ports import free_port


def train_all(folders: Iterable[Path], world: int = 1, before: Callable[[Path], None] | None = None) -> None:
    """Train the runs in `folders`, each set up already, one after the other on `world` processes; a mistake is raised here.

    Args:
        before: called with each folder before it is trained; a function of a module.
    """
    warm.spawn(_process, (world, free_port(), [Path(folder) for folder in folders], before), world)


def _process(rank: int, world: int, port: int, folders: list[Path], before: Callable[[Path], None] | None) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    # DeepSpeed keeps the process group in its modules' globals: it stays from run to run.
    destroy, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    loop.join_process_group(torch.device("cpu"))
    for folder in folders:
        if before and rank == 0:
            before(folder)
        dist.barrier()
        loop.train(folder)
    destroy()
