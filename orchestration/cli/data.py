"""`echo-lm data`: look at prepared datasets, and write them in another format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..progress.bars import console
from .options import Data, Overrides, Target
from .prepare import dataset_target

data_app = typer.Typer(
    name="data", help="Look at prepared datasets, and write them in another format.", no_args_is_help=True
)


@data_app.command()
def show(
    target: Target,
    overrides: Overrides = None,
    data: Data = None,
    documents: Annotated[int, typer.Option(min=0, help="Documents of each source.")] = 2,
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    split: Annotated[Literal["train", "heldout"], typer.Option(help="Split of the dataset.")] = "train",
    figure: Annotated[
        Path | None, typer.Option(help="File of the figure; document_lengths.png in the dataset's folder if left out.")
    ] = None,
) -> None:
    """Documents, decoded, with their borders; the recipe's mixture as tokens and percent; a figure of lengths."""
    from ..launch.target import data_root
    from ..preparation.data_show import show as show_dataset

    dataset, config = dataset_target(target, overrides)
    show_dataset(config, data_root(target, data) / dataset.name, documents, source, split, figure)


@data_app.command()
def export(
    target: Target,
    prefix: Annotated[Path, typer.Option(help="PREFIX of the files PREFIX.bin and PREFIX.idx.")],
    data: Data = None,
    split: Annotated[Literal["train", "heldout"], typer.Option(help="Split of the dataset.")] = "train",
) -> None:
    """Write a split as an indexed dataset of Megatron-LM, each document with its separator, and the tokenizer beside it."""
    from ...data_prep.loading.dataset import Dataset
    from ...data_prep.loading.megatron import export_megatron
    from ..launch.target import data_root

    dataset, _ = dataset_target(target, None)
    tokens = export_megatron(Dataset.open(data_root(target, data) / dataset.name), split, prefix)
    console.print(f"{prefix}.bin, {prefix}.idx: {tokens:,} tokens", markup=False)
