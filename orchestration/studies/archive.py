"""Archives of studies: one file to copy from a machine available for a limited time only, and to continue from elsewhere."""

import tarfile
from pathlib import Path

from ...models.common.errors import UserError
from ...models.common.files import write_aside
from ..jobs.archive import SUFFIX
from .cell import result_file
from .export import import_study
from .folder import StudyFolder

EXCLUDED = (".safetensors", ".tmp")  # weights, and files that are being written


def pack(folder: StudyFolder, archive: Path) -> None:
    """Pack the study's own files and its finished cells, without weights.

    `echo-lm study report`, `status` and `track` work on what is unpacked.
    """
    finished = [run for run in sorted(folder.runs.glob("*")) if result_file(run).is_file()]
    others = [path for path in folder.path.glob("*") if path != folder.runs and path.name != "leases"]
    with write_aside(archive) as aside, tarfile.open(aside, "w:xz", preset=1) as file:  # 1 s instead of 15
        for path in sorted([*others, *finished]):
            name = str(path.relative_to(folder.path.parent))
            file.add(path, name, filter=lambda entry: None if entry.name.endswith(EXCLUDED) else entry)


def unpack(archive: Path, folder: StudyFolder) -> None:
    """Put the finished cells of an archive, or of a report's `study.json`, into the study's folder, which holds none yet.

    Raises:
        UserError: the archive holds no cells of this study, or the folder holds a study.
    """
    name = folder.path.name
    if folder.plan_file.is_file():
        raise UserError(
            f"{folder.path} holds a study already: leave --from out to go on with it, or name other --studies"
        )
    if archive.suffix == ".json" and archive.is_file():
        import_study(archive, folder)
        return
    if archive.is_file() and tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            if f"{name}/plan.json" in file.getnames():
                folder.path.parent.mkdir(parents=True, exist_ok=True)
                file.extractall(folder.path.parent, filter="data")
                return
    raise UserError(f"{archive} holds no {name}: name a {name}{SUFFIX} of --archive, or a report's study.json")
