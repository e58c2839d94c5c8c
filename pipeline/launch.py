"""Start the processes of a run on this machine, without Ray, and start the gang again when one of them dies."""

import os
import socket
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..models.errors import UserError
from .config import RunConfig
from .run_folder import RunFolder
from .train import train


def launch(run: RunFolder, config: RunConfig) -> None:
    """Train `run` with `config.run.workers` processes; returns when training has reached its end.

    The processes are spawned by torch's elastic agent, which restarts the gang up to `config.run.max_restarts` times;
    their output goes to `logs/` in the run folder. One worker is spawned too: DeepSpeed keeps process groups in module
    globals, so a process can train only once.

    Raises:
        UserError: what a worker recorded as such, a port in use, or a gang that kept dying.
    """
    run.error_file.unlink(missing_ok=True)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # A gang that is started again must not find the addresses of the dead one in the store: a fresh store each time.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    logs = run.path / "logs"
    logs.mkdir(exist_ok=True)
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.run.workers,
        run_id=config.name,
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{_free_port(config.run.master_port)}",
        local_addr="127.0.0.1",
        max_restarts=config.run.max_restarts,
        monitor_interval=0.5,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    try:
        elastic_launch(agent, _worker)(str(run.path))
    except ChildFailedError as error:
        run.raise_recorded_error()
        raise UserError(
            f"a training process of {run.path} failed {config.run.max_restarts + 1} times "
            f"(see {logs}); the last complete checkpoint is kept, the same command goes on from it"
        ) from error


def _worker(run_path: str) -> None:
    train(Path(run_path))


def _free_port(wanted: int | None) -> int:
    """`wanted` if it is free, or any free port.

    Raises:
        UserError: `wanted` is taken.
    """
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError:
            raise UserError(f"port {wanted} (run.master_port) is in use: name another one or leave it out") from None
        return probe.getsockname()[1]
