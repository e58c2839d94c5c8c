"""Many short trainings in one process: starting processes and DeepSpeed is most of a small run's time."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from echo_lm.pipeline import loop
from tests.helpers.ports import free_port


def train_all(folders: Iterable[Path], world: int = 1) -> None:
    """Train the runs in `folders`, each set up already, one after the other on `world` processes; a mistake is raised here."""
    mp.spawn(_process, (world, free_port(), [str(folder) for folder in folders]), nprocs=world)


def _process(rank: int, world: int, port: int, folders: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    # DeepSpeed keeps the process group in its modules' globals: it stays from run to run.
    destroy, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    for folder in folders:
        loop.train(folder)
    destroy()
