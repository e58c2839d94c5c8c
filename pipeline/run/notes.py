"""`notes.yaml` of a run: its tags, a note, and whether it is archived. People may write the file by hand too."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ...evals.layout import stored_config
from ...models.common.cached_files import read_yaml_if_whole
from ...models.common.errors import UserError
from ...models.common.files import write_text
from ...models.common.run_layout import NOTES
from .reader import RunReader


def write_notes(
    run_folder: Path,
    *,
    note: str | None = None,
    add: Iterable[str] = (),
    remove: Iterable[str] = (),
    archived: bool | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Change tags, note and archived mark of a run; a value that is None stays as it was.

    Returns:
        the file, and its contents.

    Raises:
        UserError: not a run folder, or the file is damaged or cannot be written.
    """
    stored_config(run_folder)
    path = Path(run_folder) / NOTES
    stored = read_yaml_if_whole(path)
    if stored is None and path.exists():
        raise UserError(f"{path} is no YAML with keys: mend or remove it")
    notes = (stored or {}) | RunReader(run_folder).notes()
    notes["tags"] = [tag for tag in dict.fromkeys([*notes["tags"], *add]) if tag not in set(remove)]
    if note is not None:
        notes["note"] = note
    if archived is not None:
        notes["archived"] = archived
    write_text(path, yaml.safe_dump(notes, sort_keys=False, allow_unicode=True))
    return path, notes
