"""The result files of recall sweeps: one a run, in the folder of the sweep.

`SWEEPS/NAME/runs/ID.json` is a run. Beside the folder `NAME.json` may hold many runs, one a line: what an archive brought
home, or what an earlier version wrote (that one also wrote parts, `NAME.K-of-N.json`).
"""

import json
import platform
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ...models.common.errors import UserError
from ...models.common.files import read_json, write_aside, write_text
from ...models.common.provenance import commit


class SweepFolder:
    """Paths of a sweep called `name` in the folder `sweeps`. Making the object touches nothing."""

    def __init__(self, sweeps: Path, name: str):
        self.sweeps, self.name = Path(sweeps), name
        self.path = self.sweeps / name

    def run_file(self, run_id: str) -> Path:
        """The path of a run's result."""
        return self.path / "runs" / f"{run_id}.json"

    def lease_file(self, run_id: str) -> Path:
        """The path of a run's lease."""
        return self.path / "leases" / f"{run_id}.lease"

    def log_file(self, run_id: str) -> Path:
        """The path of the log of a group of runs, named by the id of its first run."""
        return self.path / "logs" / f"{run_id}.log"

    def failure_file(self, run_id: str) -> Path:
        """The path of the errors of a group of runs whose every attempt failed, named by the id of its first run."""
        return self.path / "failures" / f"{run_id}.json"

    def joined_files(self) -> list[Path]:
        """Files with many runs: `NAME.json`, and parts that earlier versions wrote."""
        pattern = re.compile(re.escape(self.name) + r"(\.\d+-of-\d+)?\.json")
        return sorted(path for path in self.sweeps.glob("*.json") if pattern.fullmatch(path.name))


class Results:
    """The results of a sweep by the id of their run; `refresh` reads what was added."""

    def __init__(self, folder: SweepFolder):
        self.folder = folder
        self.found: dict[str, dict[str, Any]] = {}
        for path in folder.joined_files():
            for run in _runs_in(path):
                self.found.setdefault(run["id"], run)
        self.refresh()

    def refresh(self) -> dict[str, dict[str, Any]]:
        """Read the files of new runs; returns all results.

        Raises:
            UserError: a file is damaged.
        """
        for path in sorted(self.folder.path.glob("runs/*.json")):
            if path.stem not in self.found:
                run = read_json(path)
                if not isinstance(run, dict) or run.get("id") != path.stem:
                    raise UserError(f"{path} holds no run of this name: move it away, the sweep trains it again")
                self.found[path.stem] = run
        return self.found


def write_run(folder: SweepFolder, result: dict[str, Any]) -> None:
    """Write the file of a run."""
    write_text(folder.run_file(result["id"]), json.dumps(result, allow_nan=False) + "\n")


def write_joined(path: Path, name: str, runs: Iterable[dict[str, Any]]) -> None:
    """Write many runs of the sweep `name` into one file, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(run, allow_nan=False) for run in runs)
    with write_aside(path) as aside:
        aside.write_text(f'{{"table": "{name}", "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def provenance(device: str) -> dict[str, str]:
    """The hardware, the version of torch, the date and the commit of a run that ends now."""
    return {
        "hardware": torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU {platform.machine()}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def _runs_in(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
        raise UserError(f"{path} holds no runs: move it away, or name another folder")
    return content["runs"]
