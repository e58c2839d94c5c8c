"""`echo-lm prepare`: a recipe's sources to a tokenizer and token shards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Data, Overrides, Target

if TYPE_CHECKING:
    from ...data_prep.config import DatasetConfig
    from ...pipeline.config import RunConfig


def prepare(
    target: Target,
    overrides: Overrides = None,
    data: Data = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Re-read every file of the finished dataset and check what is in it.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Slices at once; one a core if left out.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to use; one of its own on this machine if left out.")
    ] = None,
    ray: Annotated[bool, typer.Option(help="Ray Data, which survives workers and nodes; or plain processes.")] = True,
) -> None:
    """Turn a recipe's sources into a tokenizer and verified token shards. A repetition does only what is missing."""
    from functools import partial

    from ..launch.target import data_root
    from ..preparation.executors import process_map
    from ..preparation.mixture import print_mixture
    from ..preparation.prepare import prepare_dataset, prepare_on_ray, ray_is_installed, refuse_changed_sources
    from ..preparation.verify import print_verification

    dataset, config = dataset_target(target, overrides)
    data = data_root(target, data)
    folder = data / dataset.name
    if verify:
        print_verification(folder)
        return
    refuse_changed_sources(dataset, data)
    if ray and ray_is_installed():
        prepare_on_ray(dataset, data, workers, address)
    else:
        prepare_dataset(dataset, data, partial(process_map, workers=workers))
    if config:
        print_mixture(config, folder)


def dataset_target(target: str, overrides: list[str] | None) -> "tuple[DatasetConfig, RunConfig | None]":
    """The dataset of a recipe or run folder, and the whole recipe; None for a recipe with the section `data` alone.

    Raises:
        UserError: neither a recipe nor a run folder, or a bad override.
    """
    from ...pipeline.run.folder import RunFolder
    from ..launch.target import resolve_target
    from ..preparation.data_recipe import load_data_recipe

    if not RunFolder(target).exists() and (dataset := load_data_recipe(target, overrides)):
        return dataset, None
    config, _ = resolve_target(target, overrides, Path("runs"))
    return config.data, config
