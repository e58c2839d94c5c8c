"""`echo-lm data`: look at prepared datasets."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Data, Overrides, Target
from .prepare import dataset_target

data_app = typer.Typer(name="data", help="Look at prepared datasets.", no_args_is_help=True)


@data_app.command()
def show(
    target: Target,
    overrides: Overrides = None,
    data: Data = None,
    documents: Annotated[int, typer.Option(min=0, help="Documents of each source.")] = 2,
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    split: Annotated[str, typer.Option(help="train or heldout.")] = "train",
    figure: Annotated[
        Path | None, typer.Option(help="File of the figure; document_lengths.png in the dataset's folder if left out.")
    ] = None,
) -> None:
    """Documents, decoded, with their borders; the recipe's mixture as tokens and percent; a figure of lengths."""
    from ..launch.target import data_root
    from ..preparation.data_show import show as show_dataset

    dataset, config = dataset_target(target, overrides)
    show_dataset(config, data_root(target, data) / dataset.name, documents, source, split, figure)
