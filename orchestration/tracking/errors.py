"""One-line explanations of MLflow errors, with their remedies."""

import errno
import re
import sqlite3
from collections.abc import Iterator

from filelock import Timeout

from ...models.common.errors import UserError

AGAIN = "move the file away: the record is made again from the runs' files"
# What a message of sqlite, SQLAlchemy, alembic, requests or MLflow contains; what is wrong; what mends it. The first that fits
# counts. MLflow wraps their errors in a class of its own, so only the text tells them apart.
CAUSES = (
    (
        r"can't locate revision",
        "was written by a newer MLflow than the one installed here",
        f"install that one, or {AGAIN}",
    ),
    (
        r"out-of-date database schema",
        "was written by an older MLflow",
        "copy the file, then run `mlflow db upgrade '{uri}'`",
    ),
    (
        r"(table|index) \S+ already exists|no such (table|column)|duplicate column",
        "is half made, as by a process that died meanwhile",
        AGAIN,
    ),
    (r"not a database|malformed", "is damaged, or no database", AGAIN),
    (r"disk is full|no space left|quota exceeded", "lies on a full disk", "free some space"),
    (r"database is locked", "is locked by another process", "wait for that process"),
    (
        r"readonly database|unable to open database|permission denied|(is|not) a directory",
        "cannot be opened for writing",
        "make its folder yours and let the path be that of a file, or name another one with --tracking-uri",
    ),
    (
        r"permission_denied|unauthenticated|error code 40[13]",
        "refuses access",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    (
        r"unsupported uri|can't load plugin|invalid \S*uri|could not parse|no connection adapters|filesystem tracking backend",
        "is no address of a record",
        "give a server (http://host:5000) or a sqlite file (sqlite:////folder/mlflow.db)",
    ),
    (r"error code 404", "is a server, but not one of MLflow", "check host and port"),
    (r"failed with exception|max retries|connection|timed out|error code 5", "does not answer", "start it"),
)
FILE_ERRORS = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "quota exceeded",
    errno.EACCES: "permission denied",
    errno.EROFS: "permission denied",
    errno.EISDIR: "is a directory",
    errno.ENOTDIR: "not a directory",
    errno.EEXIST: "not a directory",  # a file where a folder is to be made
}


def explain(error: BaseException, uri: str) -> str:
    """Explain in one line why the record at `uri` could not be written, and what would be right."""
    if isinstance(error, UserError):
        return one_line(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed here: install it, or run `echo-lm track` where it is"
    if isinstance(error, Timeout):
        return f"MLflow at {uri} is being made by another process since minutes: wait for that process"
    text = " ".join(_texts(error)).lower()
    for pattern, wrong, remedy in CAUSES:
        if re.search(pattern, text):
            return f"MLflow at {uri} {wrong} ({one_line(error)}): {remedy.format(uri=uri)}"
    return f"MLflow at {uri} failed ({type(error).__name__}: {one_line(error)}); what was sent before stands"


def one_line(error: BaseException) -> str:
    """The first line of an error's message; its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _texts(error: BaseException | None) -> Iterator[str]:
    """The messages of an error and of those that it was raised from."""
    while error is not None:
        # An SQL error's text holds the statement and its values, which may contain any words; its origin's does not.
        origin = getattr(error, "orig", None)
        if isinstance(origin, sqlite3.Error):
            yield str(origin)
        elif isinstance(error, OSError):
            yield FILE_ERRORS.get(error.errno or 0, "") or one_line(error)
        else:
            yield one_line(error)
        error = error.__cause__ or error.__context__
