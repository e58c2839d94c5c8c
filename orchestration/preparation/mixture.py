"""Printing of a recipe's mixture before training: tokens from each source, and how often a source is repeated."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ...data_prep.loading.dataset import Dataset
from ...pipeline.config import RunConfig
from ..progress.bars import console

if TYPE_CHECKING:
    from ...data_prep.loading.loader import BatchLoader


def print_mixture(config: RunConfig, folder: Path) -> None:
    """Print the run's tokens from each source, their percentage, and how often the run repeats the source.

    Raises:
        UserError: the mixture does not fit the dataset.
    """
    from ...data_prep.loading.loader import BatchLoader  # imports torch, which the supervisor of a run must not import

    loader = BatchLoader(
        Dataset.open(folder),
        config.mixture,
        sequence_length=config.train.sequence_length,
        batch_sequences=1,
        seed=config.seed,
    )
    table = Table("source", "tokens", "percent", "epochs", title=f"mixture of {config.train.steps:,} steps")
    repeated = []
    rows = config.train.tokens_before(config.train.steps) // config.train.sequence_length
    for use in loader.describe(rows):
        epochs = "never repeats" if use.epochs is None else f"{use.epochs:.2f}"
        table.add_row(use.name, f"{use.tokens:,}", f"{use.share:.1%}", epochs)
        if use.epochs is not None and use.epochs > 1:
            repeated.append(f"this recipe repeats source {use.name} {use.epochs:.1f} times")
    console.print(table)
    for line in (*repeated, *_left_out(config, loader)):
        console.print(line)


def _left_out(config: RunConfig, loader: "BatchLoader") -> list[str]:
    """A line for each source of the dataset that the recipe's text_weights do not name."""
    names = loader.text.names if loader.text else ()
    unused = [source.label for source in config.data.sources if source.label not in names] if names else []
    return [f"this recipe reads nothing of source {name}: mixture.text_weights leaves it out" for name in unused]
