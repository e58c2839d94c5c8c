"""`echo-lm prepare`: a recipe's sources to a tokenizer and token shards."""

from pathlib import Path
from typing import Annotated

import typer

from ..progress.bars import console
from .options import Data, Overrides, Target


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
    """Turn a recipe's sources into a tokenizer and verified token shards. Run again, only what is missing is done."""
    from functools import partial

    from ...data_prep.loading.verify import verify as verify_dataset
    from ..launch.target import data_root, resolve_target
    from ..preparation.executors import process_map
    from ..preparation.mixture import print_mixture
    from ..preparation.prepare import prepare_dataset, prepare_on_ray, ray_is_installed

    config, _ = resolve_target(target, overrides, Path("runs"))
    data = data_root(target, data)
    folder = data / config.data.name
    if verify:
        manifest = verify_dataset(folder)
        console.print(
            f"{folder}: {len(manifest.shards)} shards and the tokenizer match the manifest; splits are disjoint"
        )
        return
    if ray and ray_is_installed():
        prepare_on_ray(config.data, data, workers, address)
    else:
        prepare_dataset(config.data, data, partial(process_map, workers=workers))
    print_mixture(config, folder)
