"""The folder of a run: its paths, its lock, its identity. Layout in `docs/design/architecture.md`."""

import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...evals.layout import is_suite_file, stored_config
from ...models.common.errors import UserError
from ...models.common.files import read_json, write_json
from ...models.common.provenance import git_state
from ...models.common.run_layout import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    ENVIRONMENT,
    ERROR,
    EVALS,
    EVENTS,
    FINISHED,
    HEARTBEATS,
    IDENTITY,
    LATEST,
    LINEAGE,
    START,
    SUPERVISION,
)
from ...models.common.validation import first_difference
from ..config import AMENDABLE_SECTIONS, RunConfig, parse_config, save_config
from .identity import run_id

RECORDED_PACKAGES = ("echo-lm", "torch", "deepspeed", "numpy", "tokenizers", "triton", "mamba-ssm", "ray", "mlflow")


class RunFolder:
    """Paths of one run below `path`. Making the object touches nothing."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config_file = self.path / CONFIG
        self.environment_file = self.path / ENVIRONMENT
        self.data_file = self.path / DATA
        self.events_file = self.path / EVENTS
        self.supervision_file = self.path / SUPERVISION
        self.error_file = self.path / ERROR
        self.finished_file = self.path / FINISHED
        self.start = self.path / START
        self.checkpoints = self.path / CHECKPOINTS
        self.latest_file = self.checkpoints / LATEST
        self.evals = self.path / EVALS
        self.heartbeats = self.path / HEARTBEATS
        self.worker_group_file = self.heartbeats / "worker_group"
        self.stop_file = self.heartbeats / "stop"
        self.checkpoint_request_file = self.heartbeats / "checkpoint"

    def exists(self) -> bool:
        """Whether a run was ever set up here."""
        return self.config_file.is_file()

    def finished(self) -> bool:
        """Whether training reached its horizon."""
        return self.finished_file.is_file()

    def load_config(self) -> RunConfig:
        """The stored configuration.

        If the path of a suite's file does not exist, its path relative to the run's folder is taken: both may move together.

        Raises:
            UserError: not a run folder, or its configuration was damaged.
        """
        config = parse_config(stored_config(self.path), str(self.config_file))
        missing = {suite for suite in config.evaluation.suites if is_suite_file(suite) and not Path(suite).is_file()}
        if not missing or not self.data_file.is_file():
            return config
        relative = read_json(self.data_file).get("suites", {})
        beside = {suite: os.path.normpath(self.path / relative[suite]) for suite in missing & relative.keys()}
        found = {suite: path for suite, path in beside.items() if Path(path).is_file()}
        suites = tuple(found.get(suite, suite) for suite in config.evaluation.suites)
        return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"suites": suites})})

    def environment(self) -> dict[str, Any]:
        """The contents of `environment.json`; empty without that file."""
        return read_json(self.environment_file) if self.environment_file.is_file() else {}

    def data_folder(self) -> Path:
        """The path of the run's dataset: relative to the run's folder if it exists there, else the path at which it was when the
        run was set up."""
        stored = read_json(self.data_file)
        beside = (self.path / stored["folder"]).resolve()
        absolute = Path(stored.get("absolute", beside))
        return absolute if absolute.is_dir() and not beside.is_dir() else beside

    def manifest_file(self) -> Path | None:
        """The manifest of the dataset that the run trains on; None if it does not exist."""
        from ...data_prep.preparing.manifest import FILE_NAME as MANIFEST  # imports numpy and tokenizers, so only here

        if not self.data_file.is_file():
            return None
        path = self.data_folder() / MANIFEST
        return path if path.is_file() else None

    def check_owner(self, *, trust: bool = False) -> None:
        """Check that the run belongs to this user, since resuming reads files that its owner wrote.

        Raises:
            UserError: it belongs to another user, and `trust` is not set.
        """
        for path in (self.config_file, self.checkpoints):
            if not trust and path.exists() and path.stat().st_uid != os.geteuid():
                raise UserError(
                    f"{self.path} belongs to another user (uid {path.stat().st_uid}, you are {os.geteuid()}): "
                    "go on with it only if you trust them, with --trust"
                )

    def check(self, config: RunConfig, *, trust: bool = False) -> None:
        """Check that the folder is free for `config`, or holds a run of the same identity to go on with.

        Raises:
            UserError: the folder belongs to a run that trains something else or to another user, or holds other files; or
                `config` starts from something that is not there or does not fit.
        """
        self.check_owner(trust=trust)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: name a folder for the run")
        if self.exists():
            difference = first_difference(self.load_config().identity_fields(), config.identity_fields())
            if difference:
                field, old, new = difference
                amendable = field.split(".")[0] in AMENDABLE_SECTIONS
                raise UserError(
                    f"{self.path} holds a run with another {field} (stored {old!r}, asked {new!r}): "
                    "choose another name (name=...) or go on with the stored configuration"
                    + (", or change it from here on with --amend" if amendable else "")
                )
        elif self.path.is_dir():
            # Left by a crash before the configuration was written.
            own_files = {".lock", ".supervision.lock", SUPERVISION, DATA, ENVIRONMENT, IDENTITY, HEARTBEATS}
            own_files |= {LINEAGE, START, f".{START}.partial"}
            if any(entry.name not in own_files for entry in self.path.iterdir()):
                raise UserError(f"{self.path} is in use: it holds files but no run; name another folder")
        if config.start_from and not self.exists():
            from .start import find_start  # reads this module

            find_start(config, self.path)

    def prepare(self, config: RunConfig, dataset: Path, *, trust: bool = False) -> None:
        """Set the folder up for `config` on the prepared `dataset`; the configuration is written last.

        Raises:
            UserError: see `check`.
        """
        self.check(config, trust=trust)
        own = self.path.resolve()
        relative = os.path.relpath(dataset.resolve(), own)
        files = [suite for suite in config.evaluation.suites if is_suite_file(suite)]
        suites = {"suites": {file: os.path.relpath(Path(file).resolve(), own) for file in files}} if files else {}
        write_json(self.data_file, {"folder": relative, "absolute": str(dataset.resolve())} | suites)
        if not self.environment_file.exists():  # later starts record theirs in their `start` events
            write_json(self.environment_file, describe_environment())
        run_id(self.path, new=True)
        if config.start_from and not self.exists():
            from .start import set_up_start  # reads this module

            set_up_start(self, config)
        save_config(config, self.config_file)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one training process tree; the lock dies with its holder.

        Raises:
            UserError: another process trains in this folder.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made ({error.strerror}): name a folder you own") from error
        holder = FileLock(self.path / ".lock")
        try:
            holder.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.path} is in use by another process: wait for it or choose another name") from None
        try:
            yield
        finally:
            holder.release()

    def raise_recorded_error(self) -> None:
        """Raise the `UserError` that a worker of the last attempt recorded, if any."""
        if self.error_file.is_file():
            raise UserError(read_json(self.error_file)["message"])


def describe_environment() -> dict[str, Any]:
    """Versions, git commit and hardware, for judging or repeating a run."""
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "hardware": _describe_hardware(),
    } | git_state()


def _describe_hardware() -> str:
    import torch  # takes seconds, so only here

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join([*gpus, f"{os.cpu_count()} CPU cores"])
