"""A sqlite file as MLflow's store: created by one process, checked before MLflow opens it, with its artifacts beside it.

MLflow leaves a file half made if its process dies meanwhile, tries for minutes to open what cannot be opened, and stores
absolute paths of artifacts, which are wrong once the folder was moved. This module sees to these.
"""

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlflow-artifacts"
BUSY_SECONDS = 20.0
# Every column in which MLflow stores the absolute location of an artifact. Versions of MLflow differ in which they have.
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def sqlite_uri(path: Path) -> str:
    """The tracking URI of a sqlite file, with `%`, `?` and `#` of its path encoded as the installed SQLAlchemy decodes them."""
    try:
        from sqlalchemy import URL
    except ModuleNotFoundError:  # then MLflow is missing as well, and nothing is opened
        return f"sqlite:///{path}"
    return URL.create("sqlite", database=str(path)).render_as_string()


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of the sqlite file of a tracking URI; None for a server, another database, or one in memory."""
    if not uri.startswith("sqlite:///"):
        return None
    from sqlalchemy import make_url

    name = make_url(uri).database
    return None if not name or name == ":memory:" or name.startswith("file:") else Path(name).resolve()


def artifacts_beside(database: Path) -> str:
    """The URI of the folder of artifacts beside a sqlite file."""
    return (database.parent / ARTIFACTS).as_uri()


def make_if_missing(database: Path, make: Callable[[str], object]) -> None:
    """Make a sqlite file under another name and rename it, so that a crash leaves none that is half made.

    The caller holds a lock.

    Args:
        make: called with the tracking URI of a file that does not exist; makes it, with MLflow's tables.
    """
    if database.is_dir() or (database.is_file() and database.stat().st_size):
        return
    for torn in database.parent.glob(f".{database.name}.*.new*"):
        torn.unlink()
    # A name of its own each time: MLflow keeps what it opened by its URI as long as the process lives.
    new = database.with_name(f".{database.name}.{uuid.uuid4().hex}.new")
    make(sqlite_uri(new))
    os.replace(new, database)


def check_writable(database: Path) -> None:
    """Check that the file can be written, by a transaction that is rolled back; MLflow itself would retry for minutes.

    Raises:
        OSError: a folder.
        sqlite3.Error: no database, locked, not writable.
    """
    if database.is_dir():
        raise IsADirectoryError(f"{database} is a directory")
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def remove_stray_folders(uri: str) -> None:
    """Remove the empty folders that MLflow makes for a path with encoded characters, which it takes literally."""
    literal = Path(uri.removeprefix("sqlite:///")).parent
    database = sqlite_file(uri)
    if database is not None and literal.is_dir() and literal.resolve() != database.parent:
        with contextlib.suppress(OSError):  # not empty, so not of MLflow's making
            os.removedirs(literal)


def follow_artifacts(database: Path, experiment: str) -> None:
    """Update the artifact locations in a file that was moved or copied together with the artifacts beside it.

    Nothing changes if the artifacts were never beside it, or if only the file was moved. MLflow has no call for this
    (its issues 3144, 3719 and 8226 ask for one), so its tables are changed in one transaction.
    """
    beside = database.parent / ARTIFACTS
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        stored = (connection.execute(query, (experiment,)).fetchone() or [None])[0]
        if not stored:
            return
        old = _local_path(stored)
        if old is None or old.name != ARTIFACTS or old == beside:
            return
        if old.is_dir() and (not beside.is_dir() or old.samefile(beside)):
            return
        connection.execute("BEGIN IMMEDIATE")
        for table, column in LOCATIONS:
            if column in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (beside.as_uri(), len(stored) + 1, stored, len(stored) + 1, stored + "/"),
                )
        connection.execute("COMMIT")


def _local_path(location: str) -> Path | None:
    """The folder of an artifact location, which is a path or a `file:` URI; None for another store."""
    parts = urlsplit(location)
    return Path(unquote(parts.path if parts.scheme else location)) if parts.scheme in ("", "file") else None
