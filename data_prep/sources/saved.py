"""Adapter for folders that `datasets` wrote with `save_to_disk`, read without that library."""

from pathlib import Path

from ...models.common.errors import UserError
from ...models.common.files import read_json
from ..config import SourceConfig
from .files import SourceFiles

SPLITS_FILE = "dataset_dict.json"
STATE_FILE = "state.json"


def find_saved(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Find the Arrow files of saved datasets; of one with several splits, those of the source's split.

    Raises:
        UserError: a path is not such a folder, or has no such split.
    """
    files: list[str] = []
    for name in config.paths:
        folder = Path(name).expanduser().absolute()
        where = f"source {config.label}: {name}"
        if (folder / SPLITS_FILE).is_file():
            splits = read_json(folder / SPLITS_FILE)["splits"]
            if config.split not in splits:
                raise UserError(f"{where} has no split {config.split!r}: set split to one of {', '.join(splits)}")
            folder = folder / config.split
        if not (folder / STATE_FILE).is_file():
            raise UserError(f"{where} was not written by save_to_disk (no {STATE_FILE}): correct sources.paths")
        state = read_json(folder / STATE_FILE)
        files += [str(folder / entry["filename"]) for entry in state["_data_files"]]
    return SourceFiles("save_to_disk", "the user's own", "arrow", tuple(files))
