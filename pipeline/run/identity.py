"""The id of a run, which stays the same when its folder is moved or renamed; a copy of the folder gets another id.

Records in MLflow belong to an id. A folder that was moved keeps its inode, or leaves its old place empty; one that was copied
has a new inode, while the original still exists.
"""

import contextlib
import uuid
from pathlib import Path
from typing import Any

from ...evals.layout import stored_config
from ...models.common.cached_files import read_json_if_whole, subfolders
from ...models.common.errors import UserError
from ...models.common.files import write_json
from ...models.common.run_layout import ENVIRONMENT, IDENTITY


def run_id(run_folder: Path, *, new: bool = False) -> str:
    """The id of the run in a folder, created at the first call; also records the folder's current path in `identity.json`.

    If that file cannot be written, the id is still the same at each call.

    Args:
        new: the folder's first id is made.
    """
    folder = Path(run_folder).resolve()
    place = {"path": str(folder), "inode": folder.stat().st_ino}
    stored = read_json_if_whole(folder / IDENTITY) or {}
    identity = stored.get("run_id") or (read_json_if_whole(folder / ENVIRONMENT) or {}).get("run_id")
    record = {key: stored[key] for key in ("copied_from",) if key in stored}
    if identity is None:
        identity = uuid.uuid4().hex if new else folder.name
    elif _is_copy(folder, identity, stored, place):
        record = {"copied_from": identity}
        identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{identity}/{place}").hex
    record = {"run_id": identity} | place | record
    if record != stored:
        with contextlib.suppress(UserError, OSError):  # somebody else's folder, or a full disk
            write_json(folder / IDENTITY, record)
    return identity


def _is_copy(folder: Path, identity: str, stored: dict[str, Any], place: dict[str, Any]) -> bool:
    """Whether the folder is a copy of another one that still exists.

    Args:
        stored: contents of `identity.json`; a run of an earlier version has none, but its configuration has the name of the
            folder that it was made in.
    """
    if stored and (stored.get("inode") == place["inode"] or stored.get("path") == place["path"]):
        return False
    if not stored and stored_config(folder).get("name", folder.name) == folder.name:
        return False
    old = Path(stored.get("path", folder))
    others = {path.resolve() for path in [old, *subfolders(folder.parent), *subfolders(old.parent)]} - {folder}
    return any(_is_original(other, identity, stored) for other in others)


def _is_original(folder: Path, identity: str, stored: dict[str, Any]) -> bool:
    """Whether the run in `folder` is the original with this id, and the folder for which `stored` was written a copy.

    It is the original if it has that folder's inode, has recorded its own path already, or has that folder's name: in a tree
    that came from another machine a run may be copied before its new path was recorded.
    """
    record = read_json_if_whole(folder / IDENTITY) or read_json_if_whole(folder / ENVIRONMENT) or {}
    if record.get("run_id") != identity:
        return False
    inode = folder.stat().st_ino
    noted = (record.get("path"), record.get("inode")) == (str(folder), inode)
    return not stored or inode == stored["inode"] or noted or folder.name == Path(stored["path"]).name
