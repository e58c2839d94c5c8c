"""Data preparation with progress, on Ray tasks or on this machine's processes."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ..data_prep.config import DatasetConfig
from ..data_prep.prepare import is_complete, prepare, verify
from .progress import console, stage

MapUnits = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def prepare_dataset(config: DatasetConfig, root: Path, map_units: MapUnits | None = None) -> Path:
    """Prepare the dataset below `root`; a complete one is recognised. Returns its folder.

    Raises:
        UserError: a source is missing or empty, the folder holds another dataset, or the disk is full.
    """
    if is_complete(config, root):
        console.print(f"{root / config.name}: dataset is complete; nothing to do")
        return root / config.name
    console.print(f"{root / config.name}: fetching sources, training the tokenizer")
    return prepare(config, root, map_units=_with_progress(map_units or process_map))


def verify_dataset(folder: Path) -> None:
    """Re-read every file of a dataset and compare it with the manifest.

    Raises:
        UserError: naming the file that does not match.
    """
    verify(folder)


def process_map(function: Callable[[Any], Any], units: Iterable[Any]) -> Iterator[Any]:
    """Run `function` on every unit in processes of this machine, one a core; results come as they are done."""
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done in as_completed([pool.submit(function, unit) for unit in units]):
            yield done.result()


def _with_progress(map_units: MapUnits) -> MapUnits:
    def mapped(function: Callable[[Any], Any], units: Iterable[Any]) -> Iterator[Any]:
        units = list(units)
        with stage("tokenize", total=len(units), unit="slices") as progress:
            for number, result in enumerate(map_units(function, units), start=1):
                progress.update(number)
                yield result

    return mapped
