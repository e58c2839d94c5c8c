"""The lineage of a run, `lineage.json`: its parent, and its segments, the configurations it was trained with, each from a certain
step on.

A run that began with fresh weights and was never amended has no such file. See `docs/design/lineage.md`.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

from ...models.common.cached_files import read_json_if_whole, subfolders
from ...models.common.config import Record
from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_json, write_json
from ...models.common.run_layout import IDENTITY, LINEAGE
from ...models.common.validation import differences
from ..config import IDENTITY_SECTIONS, RunConfig, parse_config

AVERAGE = "average"  # `Parent.what` of a run that holds averaged weights
SEGMENT_SECTIONS = tuple(name for name in IDENTITY_SECTIONS if name != "start_from")


class Parent(Record):
    """The checkpoint that a run began from.

    Attributes:
        run: name of the parent's folder, or of the folder of weights.
        path: where it was.
        run_id: id of the parent run (`identity.py`); None for a folder of weights.
        step, tokens: position of the checkpoint.
        what: what was taken (`StartFromSection.what`), or "average".
        content: SHA-256 over names and hashes of the files that were taken.
        averaged: steps of the checkpoints in an average.
    """

    run: str
    path: str
    run_id: str | None
    step: int
    tokens: int
    what: str
    content: str
    averaged: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.averaged:
            steps = ", ".join(f"{step:,}" for step in self.averaged)
            return f"{self.run}, average of steps {steps} (content {self.content[:12]})"
        at = f" at step {self.step:,}" if self.run_id else ""
        return f"{self.run}{at} ({self.what}, content {self.content[:12]})"


class Segment(Record):
    """A stretch of training with one configuration.

    Attributes:
        step: the step after which it begins.
        run: name of the run that trained it.
        identity: hash of `config`, renamed keys under their first names.
        config: the sections of the configuration that say what is trained.
    """

    step: int
    run: str
    identity: str
    config: dict[str, Any]

    @classmethod
    def of(cls, step: int, config: RunConfig) -> "Segment":
        """The segment of a configuration from `step` on."""
        values = {key: value for key, value in config.resolved().items() if key in SEGMENT_SECTIONS}
        return cls(step=step, run=config.name, identity=segment_identity(config), config=values)

    def run_config(self, execution: RunConfig | None = None) -> RunConfig:
        """The segment's complete configuration, with the execution settings of `execution`; default ones if None."""
        values = {"name": self.run} | self.config
        if execution is not None:
            values |= {"run": execution.run.model_dump(), "evaluation": execution.evaluation.model_dump()}
        return parse_config(values, f"the segment from step {self.step} on of {self.run}")


class Lineage(Record):
    """The contents of `lineage.json`; the segments begin with those of the ancestors whose steps the run goes on from.

    Attributes:
        root: content of what the first segment began from, maybe an ancestor's; None for fresh weights.
    """

    format: int = 1
    parent: Parent | None
    root: str | None = None
    segments: tuple[Segment, ...]

    @property
    def own_step(self) -> int:
        """The step from which the run itself trains."""
        return self.parent.step if self.parent and self.parent.what == "everything" else 0

    def changes(self) -> list[str]:
        """One line per amendment, those of ancestors included: `from step 800 on train.steps 1000 -> 2000`."""
        lines = []
        for before, after in pairwise(self.segments):
            found = (f"{key} {old} -> {new}" for key, old, new in differences(before.config, after.config))
            lines.append(f"from step {after.step:,} on {', '.join(found)}")
        return lines

    def identity(self) -> str:
        """Hash of the run's origin and all its segments; runs with the same hash are trained alike."""
        ends = [segment.step for segment in self.segments[1:]]
        trained = [
            (segment.step, segment.identity)
            for segment, end in zip(self.segments, [*ends, None], strict=True)
            if segment.step != end  # the run was amended again before it trained a step
        ]
        return sha256_json({"start": self.root, "segments": trained})

    def write(self, run_folder: Path) -> None:
        """Write the file."""
        write_json(run_folder / LINEAGE, self.model_dump(mode="json"))


def segment_identity(config: RunConfig) -> str:
    """SHA-256 of the sections that define what is trained, without `start_from`."""
    return sha256_json({key: value for key, value in config.identity_dump().items() if key in SEGMENT_SECTIONS})


def read_lineage(run_folder: Path) -> Lineage | None:
    """The lineage of a run; None if it began with fresh weights and was never amended.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(run_folder) / LINEAGE
    if not path.is_file():
        return None
    try:
        return Lineage.model_validate(read_json(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: restore it, the run cannot go on without it") from error


def segments_of(run_folder: Path, config: RunConfig) -> list[Segment]:
    """The segments of a run with the stored configuration `config`, that of its ancestors first.

    A last segment that is not the one of `config` belongs to an amendment that a crash tore, and is left out.

    Raises:
        UserError: `lineage.json` is damaged or does not belong to `config`.
    """
    lineage = read_lineage(run_folder)
    if lineage is None:
        return [Segment.of(0, config)]
    identity = segment_identity(config)
    for segments in (lineage.segments, lineage.segments[:-1]):
        if segments and segments[-1].identity == identity:
            return list(segments)
    raise UserError(
        f"{run_folder}/config.yaml does not belong to {run_folder}/{LINEAGE}: restore it, and change a run by --amend"
    )


def shown_lineage(run_folder: Path) -> Lineage | None:
    """The lineage of a run for display; None without one, or if the file is damaged."""
    try:
        return read_lineage(run_folder)
    except UserError:
        return None


def find_parent(run_folder: Path, parent: Parent) -> Path | None:
    """Find the folder of a run's parent by its id: at its recorded path, beside that or beside the run; None if not found."""
    was = Path(parent.path)
    for folder in [was, *subfolders(was.parent), *subfolders(Path(run_folder).resolve().parent)]:
        if (read_json_if_whole(folder / IDENTITY) or {}).get("run_id", folder.name) == parent.run_id:
            return folder
    return None
