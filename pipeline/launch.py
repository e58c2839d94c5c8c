"""Launch of a run's worker processes on this machine without Ray; the worker group is restarted when one of them dies."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..models.common.errors import UserError
from ..models.common.files import disk_is_full, no_space
from .config import RunConfig
from .monitoring.startup import COMMAND_STARTED
from .run.folder import RunFolder
from .run.stop_request import clear_stop_request
from .stop_signal import StopSignal
from .worker import work


def launch(run: RunFolder, config: RunConfig) -> None:
    """Train `run` with `config.run.workers` processes; returns when training has reached its end.

    The processes are spawned by torch's elastic agent, which restarts the worker group up to `config.run.max_restarts` times;
    their output goes to `logs/` in the run folder. One worker is spawned too: DeepSpeed keeps process groups in module
    globals, so a process can train only once.

    SIGTERM and SIGUSR1 reach the workers, which save a checkpoint and leave. SIGINT, SIGHUP and SIGQUIT end them.

    Raises:
        KeyboardInterrupt: at SIGINT.
        SystemExit: at SIGHUP or SIGQUIT.
        UserError: an error that a worker recorded in the run folder, a port in use, or a worker group that
            failed `run.max_restarts` times in a row.
    """
    run.error_file.unlink(missing_ok=True)
    clear_stop_request(run)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # ranks log to their own files; the error is raised below
    environment = {
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        # A worker group that is started again must not find the addresses of the dead one in the store: a fresh store each time.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        COMMAND_STARTED: str(psutil.Process().create_time()),
    }
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
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",  # its own SIGTERM handler would kill the workers after 30 s
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    try:
        with _ForwardStop() as stop, _environ(environment):
            elastic_launch(agent, work)(str(run.path))
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        run.raise_recorded_error()
        if stop.received:  # the signal came before a worker could handle it: nothing was trained
            return
        if disk_is_full(run.path):  # the error could not be recorded
            raise no_space(run.path) from error
        raise UserError(
            f"a training process of {run.path} failed {config.run.max_restarts + 1} times "
            f"(see {logs}); the last complete checkpoint is kept, the same command goes on from it"
        ) from error


@contextlib.contextmanager
def _environ(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the workers only: later child processes must not inherit their network interface."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _ForwardStop(StopSignal):
    """Passes a stop signal on to the worker processes as SIGTERM, once to each, including those of a restarted worker group."""

    def __enter__(self) -> "_ForwardStop":
        super().__enter__()
        self._stopped = threading.Event()
        threading.Thread(target=self._forward, daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stopped.set()
        super().__exit__(*exception)

    def _forward(self) -> None:
        signalled: set[int] = set()
        while not self._stopped.wait(0.2):
            for child in psutil.Process().children() if self.received else ():
                with contextlib.suppress(psutil.Error):
                    if child.pid not in signalled and any("spawn_main" in word for word in child.cmdline()):
                        signalled.add(child.pid)
                        child.terminate()


def _free_port(port: int | None) -> int:
    """`port` if it is free; any free port if None.

    Raises:
        UserError: `port` is in use.
    """
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError:
            raise UserError(f"port {port} (run.master_port) is in use: name another one or leave it out") from None
        return probe.getsockname()[1]
