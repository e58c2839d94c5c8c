"""The mixture of a recipe, printed before training: tokens of each source, and how often a source is repeated."""

from pathlib import Path

from rich.table import Table

from ...data_prep.loading.dataset import Dataset
from ...pipeline.config import RunConfig
from ..progress.bars import console


def print_mixture(config: RunConfig, folder: Path) -> None:
    """Print the run's tokens from each source, their percentage, and how often the run repeats the source.

    Raises:
        UserError: the mixture does not fit the dataset.
    """
    from ...data_prep.loading.loader import BatchLoader  # imports torch, which the supervisor of a run stays free of

    loader = BatchLoader(
        Dataset.open(folder),
        config.mixture,
        sequence_length=config.train.sequence_length,
        batch_sequences=config.train.batch_sequences,
        seed=config.seed,
    )
    table = Table("source", "tokens", "percent", "epochs", title=f"mixture of {config.train.steps:,} steps")
    repeated = []
    for use in loader.describe(config.train.steps):
        epochs = "never repeats" if use.epochs is None else f"{use.epochs:.2f}"
        table.add_row(use.name, f"{use.tokens:,}", f"{use.share:.1%}", epochs)
        if use.epochs is not None and use.epochs > 1:
            repeated.append(f"this recipe repeats source {use.name} {use.epochs:.1f} times")
    console.print(table)
    for line in repeated:
        console.print(line)
