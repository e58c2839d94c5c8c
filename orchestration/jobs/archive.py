"""Archives: results packed into one file, to be copied from a machine that is only available for a limited time."""

from pathlib import Path

from ...models.common.errors import UserError

SUFFIX = ".tar.xz"


def check_archive(path: Path) -> None:
    """Refuse an archive that could not be written at the end.

    Raises:
        UserError: another suffix, or a folder.
    """
    if not path.name.endswith(SUFFIX) or path.is_dir():
        raise UserError(f"--archive {path}: name a file that ends in {SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
