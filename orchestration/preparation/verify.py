"""The output of `echo-lm prepare --verify`: lines on what was checked in a finished dataset."""

from pathlib import Path

from ...data_prep.loading.verify import equal_documents, verify
from ..progress.bars import console


def print_verification(folder: Path) -> None:
    """Verify a dataset; print what was checked, and how many training documents equal held-out ones up to case and punctuation.

    Raises:
        UserError: a file is missing or wrong.
    """
    manifest = verify(folder)
    console.print(
        f"{folder}: {len(manifest.shards)} shards and the tokenizer match the manifest; splits are disjoint: no document "
        "is in both as it stands"
    )
    if count := equal_documents(folder, manifest):
        console.print(
            f"{count:,} training documents equal a held-out one but for case, punctuation and white space: "
            "data.overlap.action=drop leaves them out"
        )
    for overlap in manifest.overlaps:
        console.print(f"{overlap.source}: {overlap.documents:,} training documents overlap with {overlap.against}")
