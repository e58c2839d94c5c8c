"""What evaluations look for in a run's folder: its complete checkpoints, where results lie, what it was trained on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..models.common.errors import UserError
from ..models.common.files import read_json
from ..models.common.run_layout import COMPLETE_CHECKPOINTS, CONFIG, EVALS


def complete_checkpoints(run_folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of the complete checkpoints, by step, each with its `complete.json`."""
    # Not one that is being completed: it still has its hidden name.
    for path in sorted(Path(run_folder).glob(COMPLETE_CHECKPOINTS)):
        try:
            record = read_json(path)
        except UserError:
            if path.is_file():
                raise
            continue  # removed at this moment
        yield path.parent, record


def chosen_checkpoints(run_folder: Path, step: int | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """All complete checkpoints, or that of `step`.

    Raises:
        UserError: there is none.
    """
    found = list(complete_checkpoints(run_folder))
    if not found:
        raise UserError(f"{run_folder} has no complete checkpoint: train it until the first one is written")
    wanted = [(checkpoint, record) for checkpoint, record in found if step in (None, record["step"])]
    if not wanted:
        have = ", ".join(str(record["step"]) for _, record in found)
        raise UserError(f"{run_folder} has no complete checkpoint of step {step}: it has {have}")
    return wanted


def result_path(run_folder: Path, checkpoint: str, suite: str) -> Path:
    """Where the result of a suite on a checkpoint lies: `evals/step_00000100/recall-quick.json`."""
    return Path(run_folder) / EVALS / checkpoint / f"{suite}.json"


def bigbench_folder(dataset_folder: Path) -> Path:
    """Where the items of bigbench lie: beside the datasets."""
    return Path(dataset_folder).resolve().parent / "bigbench"


def trained_on_recall(run_folder: Path) -> bool:
    """Whether a run's training mixture holds recall, by its `config.yaml`; True for a folder without one."""
    path = Path(run_folder) / CONFIG
    if not path.is_file():
        return True
    mixture = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("mixture") or {}
    return mixture.get("recall", True) is not None
