"""Data preparation with progress, on Ray tasks or on this machine's processes."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..data_prep.config import DatasetConfig
from ..data_prep.manifest import FILE_NAME as MANIFEST_FILE
from ..data_prep.manifest import read_manifest
from ..data_prep.prepare import MapUnits, prepare
from .progress import Stage, console, stage

STAGES = {"sources": "sources", "clean": "slices", "tokenizer": "tokenizers", "tokenize": "slices"}


def dataset_is_complete(config: DatasetConfig, root: Path) -> bool:
    """Whether exactly this dataset lies below `root`, finished."""
    folder = root / config.name
    return (folder / MANIFEST_FILE).is_file() and read_manifest(folder).config == config


def prepare_dataset(config: DatasetConfig, root: Path, map_units: MapUnits | None = None) -> Path:
    """Prepare the dataset below `root`; a complete one is recognised. Returns its folder.

    Raises:
        UserError: a source is missing or empty, the folder holds another dataset, or the disk is full.
    """
    if dataset_is_complete(config, root):
        console.print(f"{root / config.name}: dataset is complete; nothing to do")
    with _StageProgress() as progress:
        return prepare(config, root, map_units=map_units or process_map, on_progress=progress.update)


def process_map(function: Callable[[Any], Any], units: Iterable[Any]) -> Iterator[Any]:
    """Run `function` on every unit in processes of this machine, one a core; results come as they are done."""
    units = list(units)
    if not units:
        return
    # Threads of this process (progress, torch) make a fork unsafe.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(len(units), os.cpu_count() or 1), mp_context=context) as pool:
        for done in as_completed([pool.submit(function, unit) for unit in units]):
            yield done.result()


class _StageProgress:
    """Turns `on_progress(stage, done, total)` into one progress display after another."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._name: str | None = None
        self._stage: Stage | None = None

    def __enter__(self) -> "_StageProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def update(self, name: str, done: int, total: int) -> None:
        if name != self._name:
            self._stack.close()
            self._name = name
            self._stage = self._stack.enter_context(stage(name, total, STAGES[name], done))
        self._stage.update(done, total=total)
