"""Paths in a run's folder that evaluations need: its complete checkpoints, its results, the configuration it was trained with.

The only module that lists checkpoints and results.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..models.common.cached_files import stamp, subfolder_paths
from ..models.common.errors import UserError
from ..models.common.files import read_json
from ..models.common.run_layout import (
    CHECKPOINT_PREFIX,
    CHECKPOINTS,
    COMPLETE,
    COMPLETE_CHECKPOINTS,
    CONFIG,
    EVALS,
    RESULT_FILES,
)

MOST_DIGITS = 15  # of a step in the name of a checkpoint


def complete_checkpoints(run_folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of the complete checkpoints, by step, each with its `complete.json`."""
    # Not one that is being completed: it still has its hidden name.
    for path in sorted(Path(run_folder).glob(COMPLETE_CHECKPOINTS)):
        try:
            record = read_json(path)
        except UserError:  # removed at this moment, or damaged: then training sets the folder aside
            continue
        if isinstance(record, dict):
            yield path.parent, record


def checkpoint_folders(run_folder: Path) -> list[Path]:
    """Folders of the checkpoints, by step, also of those whose `complete.json` is damaged or was deleted."""
    return sorted(path for path in (Path(run_folder) / CHECKPOINTS).glob(f"{CHECKPOINT_PREFIX}*") if path.is_dir())


def complete_steps(run_folder: Path) -> list[tuple[int, float]]:
    """Step and time (unix seconds) of the complete checkpoints, oldest first; from names alone, no file is read."""
    steps = []
    for folder in subfolder_paths(run_folder / CHECKPOINTS):
        number = os.path.basename(folder).removeprefix(CHECKPOINT_PREFIX)
        complete = stamp(f"{folder}/{COMPLETE}")
        if complete and number.isascii() and number.isdigit() and len(number) <= MOST_DIGITS:
            steps.append((int(number), complete[0] / 1e9))
    return sorted(steps)


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
    """The path of the result of a suite on a checkpoint: `evals/step_00000100/recall-quick.json`."""
    return Path(run_folder) / EVALS / checkpoint / f"{suite}.json"


def result_files(run_folder: Path) -> list[Path]:
    """The files of all results, by checkpoint and suite."""
    return sorted(Path(run_folder).glob(RESULT_FILES))


def name_of_average(suite: str) -> str:
    """The name of a suite in its results on the moving average of the weights."""
    return f"{suite}-ema"


def is_of_average(suite: str) -> bool:
    """Whether results of that name are of the moving average."""
    return suite.endswith("-ema")


def bigbench_folder(dataset_folder: Path) -> Path:
    """The folder of bigbench's items, beside the datasets."""
    return Path(dataset_folder).resolve().parent / "bigbench"


def is_suite_file(suite: str | Path) -> bool:
    """Whether a suite is named by the path of a YAML file, rather than by the name of one that comes with the package."""
    return Path(suite).suffix in (".yaml", ".yml")


def stored_config(run_folder: Path) -> dict[str, Any]:
    """The contents of a run's `config.yaml`, unchecked.

    Raises:
        UserError: not a run folder, or the file was damaged.
    """
    path = Path(run_folder) / CONFIG
    if not path.is_file():
        raise UserError(f"{run_folder} is not a run folder: it holds no config.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or no number or date
        raise UserError(f"{path} is not valid YAML: restore it or start a run in another folder") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no configuration: restore it or start a run in another folder")
    return values


def trained_on_recall(run_folder: Path) -> bool:
    """Whether a run's training mixture holds recall, by its `config.yaml`; True for a folder without one."""
    if not (Path(run_folder) / CONFIG).is_file():
        return True
    mixture = stored_config(run_folder).get("mixture") or {}
    return mixture.get("recall", True) is not None
