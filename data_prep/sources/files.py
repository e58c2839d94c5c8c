"""Local sources (files, folders and patterns), with lists of the files that were left out or cannot be read."""

import fnmatch
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...models.common.config import Record
from ...models.common.errors import UserError
from ..config import SourceConfig
from ..formats.records import Format

# Beside the data of tables: cards, licences and what `datasets` and Spark write.
NOT_TABLES = (
    "*.md",
    "LICENSE*",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "*.crc",
    "*.idx",
)


class SkippedFiles(Record):
    """Files and folders that a source leaves out for one reason: a pattern, or "not in include".

    Attributes:
        files: how many; a folder counts as one, since it is not entered.
        first: the first of them.
    """

    reason: str
    files: int
    first: str


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source, as found by an adapter.

    Attributes:
        kind: of the adapter; the fallback's if the source could not be fetched.
        licence: of the text.
        format: of a document: "text", a file; "jsonl", a line; "csv", "parquet" and "arrow", a row; "hub", a row of a
            streaming dataset.
        files: paths or URLs, in a fixed order; none for "hub".
        origin: the release: package and version, or dataset and revision; empty for local files.
        hub_shards: number of shards of a dataset of the hub that only `datasets` can read.
        formats: of the files, one by one, if they differ.
        is_hub: whether the files are those of a dataset of the hub.
        skipped: what the patterns leave out.
        unreadable: files and folders that cannot be read, with the reason.
    """

    kind: str
    licence: str
    format: Format
    files: tuple[str, ...]
    origin: str = ""
    hub_shards: int = 0
    formats: tuple[Format, ...] = ()
    is_hub: bool = False
    skipped: tuple[SkippedFiles, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()

    def with_formats(self) -> Iterator[tuple[str, Format]]:
        """The files, each with its format."""
        return zip(self.files, self.formats or (self.format,) * len(self.files), strict=True)


def find_local(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Find local files; the source's kind is their format.

    Raises:
        UserError: a path or pattern has no file.
    """
    assert config.kind in ("text", "jsonl", "csv", "parquet", "arrow", "megatron")
    found = FoundFiles(config)
    for pattern in config.paths:
        found.add(pattern)
    return SourceFiles(
        config.kind,
        "the user's own",
        config.kind,
        tuple(found.files),
        skipped=found.skipped(),
        unreadable=tuple(found.unreadable.items()),
    )


class FoundFiles:
    """The files below the paths of a source: taken, skipped by a pattern, or unreadable. Links are followed.

    Attributes:
        files: paths of the files taken, sorted within each path of the source.
        unreadable: paths of files and folders that cannot be read, with the reason.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.files: dict[str, None] = {}
        self.unreadable: dict[str, str] = {}
        self._skipped: dict[str, list[str]] = {}
        self._include = config.include or (("*.bin",) if config.kind == "megatron" else ())
        self._exclude = config.exclude + (NOT_TABLES if config.kind != "text" else ())

    def add(self, pattern: str) -> None:
        """Take a file, all files below a folder, or those that match a pattern.

        Raises:
            UserError: there is none.
        """
        path = Path(pattern).expanduser().absolute()
        before = len(self.files) + len(self.unreadable)
        if _has_magic(str(path)) and not os.path.exists(path):
            parts = path.parts
            first = next(i for i, part in enumerate(parts) if _has_magic(part))
            base, rest = Path(*parts[:first]), list(parts[first:])
        else:
            base, rest = path, (["**", "*"] if os.path.isdir(path) else [])
        matches: dict[str, None] = {}
        if os.path.lexists(base):
            for file in self._matches(str(base), rest, ()):
                if self._is_taken(file, str(base), spelled_out=not rest):
                    matches[file] = None
        # Sorted as paths are: by their parts.
        self.files.update(dict.fromkeys(sorted(matches, key=Path)))
        if len(self.files) + len(self.unreadable) == before and not matches:
            left_out = sum(len(paths) for paths in self._skipped.values())
            reason = f" ({left_out} are left out by include and exclude)" if left_out else ""
            raise UserError(f"source {self.config.label}: no file matches {pattern}{reason}: correct sources.paths")

    def leave_out(self, reason: str, files: Iterable[str]) -> None:
        """Note files that are left out for another reason than a pattern."""
        for file in sorted(files):
            self._skipped.setdefault(reason, []).append(file)

    def skipped(self) -> tuple[SkippedFiles, ...]:
        """The files that patterns left out, by pattern."""
        return tuple(
            SkippedFiles(reason=reason, files=len(paths), first=min(paths))
            for reason, paths in sorted(self._skipped.items())
        )

    def _matches(self, path: str, parts: list[str], above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        """The files below `path` that match the parts of a pattern; notes what cannot be read on the way."""
        try:
            status = os.stat(path)
        except OSError as error:
            is_link = os.path.islink(path)
            self.unreadable[path] = "a link to nothing" if is_link and not os.path.exists(path) else str(error.strerror)
            return
        if not parts or (parts == ["**"] and not stat.S_ISDIR(status.st_mode)):
            if stat.S_ISREG(status.st_mode):
                yield path
            else:
                reason = "a folder that the pattern does not enter" if stat.S_ISDIR(status.st_mode) else "not a file"
                self._skipped.setdefault(reason, []).append(path)
            return
        if not stat.S_ISDIR(status.st_mode):
            return
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            self._skipped.setdefault("a link to a folder above it", []).append(path)
            return
        try:
            names = sorted(entry.name for entry in os.scandir(path))
        except OSError as error:
            self.unreadable[path] = str(error.strerror)
            return
        head, *rest = parts
        for name in names:
            inner = os.path.join(path, name)
            if head != "**":
                if fnmatch.fnmatchcase(name, head) and (not name.startswith(".") or head.startswith(".")):
                    yield from self._matches(inner, rest, (*above, identity))
            elif self._is_excluded(inner, name):
                continue
            elif os.path.isdir(inner):
                yield from self._matches(inner, parts, (*above, identity))
            elif not rest or (len(rest) == 1 and fnmatch.fnmatchcase(name, rest[0])):
                yield from self._matches(inner, [], above)
        if head == "**" and len(rest) > 1:
            yield from self._matches(path, rest, above)

    def _is_excluded(self, path: str, *names: str) -> bool:
        for name in names:
            for pattern in self._exclude:
                if fnmatch.fnmatchcase(name, pattern):
                    self._skipped.setdefault(pattern, []).append(path)
                    return True
        return False

    def _is_taken(self, path: str, base: str, *, spelled_out: bool) -> bool:
        """Whether the patterns take a file."""
        name, relative = os.path.basename(path), os.path.relpath(path, base)
        if not spelled_out and self._is_excluded(path, name, relative):
            return False
        if self._include and not any(
            fnmatch.fnmatchcase(text, one) for one in self._include for text in (name, relative)
        ):
            self._skipped.setdefault("not in include", []).append(path)
            return False
        return True


def _has_magic(text: str) -> bool:
    return any(character in text for character in "*?[")
