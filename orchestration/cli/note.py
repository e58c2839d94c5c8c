"""`echo-lm note`: tags, a note and an archived mark of a run, in its `notes.yaml`."""

from typing import Annotated

import typer

from ..progress.bars import console
from .options import RunPath


def note(
    run: RunPath,
    text: Annotated[str | None, typer.Argument(help="The note; the one that is there stays if left out.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Add a tag; may be repeated.")] = None,
    untag: Annotated[list[str] | None, typer.Option(help="Remove a tag; may be repeated.")] = None,
    archive: Annotated[
        bool | None, typer.Option("--archive/--restore", help="Hide the run in the dashboard, or show it again.")
    ] = None,
) -> None:
    """Tag a run, write a note about it, or archive it, for the dashboard and for readers of its folder."""
    from ...pipeline.run.notes import write_notes

    path, notes = write_notes(run, note=text, add=tag or [], remove=untag or [], archived=archive)
    console.print(
        f"{path}: {', '.join(notes['tags']) or 'no tags'}{', archived' if notes['archived'] else ''}", markup=False
    )
