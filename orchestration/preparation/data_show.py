"""`echo-lm data show`: decoded documents of a prepared dataset, its mixture, and a figure of document lengths."""

from pathlib import Path

import numpy as np

from ...data_prep.loading.dataset import Dataset
from ...data_prep.preparing.manifest import Split
from ...evals.figures.style import PALETTE, figure
from ...models.common.errors import UserError
from ...pipeline.config import RunConfig
from ..progress.bars import console
from .mixture import print_mixture

FIGURE_FILE = "document_lengths.png"
BORDER = "─" * 60
SHOWN_CHARACTERS = 2_000


def show(
    config: RunConfig | None,
    folder: Path,
    documents: int,
    source: str | None,
    split: Split,
    figure_file: Path | None = None,
) -> None:
    """Print documents with their borders and the mixture of the recipe, if there is one; draw the document lengths.

    The figure goes into the dataset's folder if no file is named; a folder that cannot be written is no error then.

    Raises:
        UserError: not prepared, no such source, or a mixture that does not fit.
    """
    dataset = Dataset.open(folder)
    names = [source] if source else [record.name for record in dataset.manifest.sources]
    tokenizer = dataset.tokenizer()
    for name in names:
        stream = dataset.split(split, name)
        for i in range(min(documents, stream.num_documents)):
            tokens = stream.document(i)
            console.print(
                f"{BORDER}\n{split}, {name}, document {i} of {stream.num_documents:,}: {len(tokens):,} tokens"
            )
            # The separator is decoded too, as the model sees it at the border.
            text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
            if len(text) > SHOWN_CHARACTERS:
                half = SHOWN_CHARACTERS // 2
                text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"
            console.print(text, markup=False)
    console.print(BORDER)
    if config:
        print_mixture(config, folder)
    try:
        console.print(f"document lengths: {draw_lengths(dataset, figure_file or folder / FIGURE_FILE)}")
    except UserError as error:
        if figure_file:
            raise
        console.print(f"document lengths are not drawn, {error}, with --figure", markup=False)


def draw_lengths(dataset: Dataset, path: Path) -> Path:
    """Draw the lengths of each source's training documents; returns the figure's path.

    Raises:
        UserError: the file cannot be written.
    """
    lengths = {
        record.name: np.diff(dataset.split("train", record.name).document_offsets)
        for record in dataset.manifest.sources
    }
    longest = max(int(source_lengths.max()) for source_lengths in lengths.values())
    edges = np.geomspace(1, longest + 1, 60)
    with figure(path, "Document lengths", "tokens of a document", "share of the source's tokens") as axes:
        for i, (name, source_lengths) in enumerate(lengths.items()):
            # Weighted by tokens, as a model sees long and short documents. Twenty sources need several line styles.
            shares, _ = np.histogram(source_lengths, edges, weights=source_lengths / source_lengths.sum())
            style = ("-", "--", ":")[i // len(PALETTE) % 3]
            axes.plot(edges[:-1], shares, linestyle=style, color=PALETTE[i % len(PALETTE)], label=name)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return path
