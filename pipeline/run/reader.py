"""Readers of run folders: `RunFiles` reads once and in full, for reports; `RunReader` reads repeatedly, for displays of running
runs.

Both read events by `events.py`, checkpoints and results by `evals/layout.py`; nothing else reads a run folder.
"""

import json
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...evals.layout import complete_checkpoints, complete_steps, is_of_average, result_files, stored_config
from ...models import ModelConfig, read_config
from ...models.common.cached_files import (
    Cache,
    Stamp,
    is_inside,
    read_json_if_whole,
    read_yaml_if_whole,
    stamp,
    subfolder_paths,
    subfolders,
)
from ...models.common.errors import UserError
from ...models.common.files import read_json
from ...models.common.run_layout import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    ERROR,
    EVALS,
    EVENTS,
    FINISHED,
    HEARTBEATS,
    IDENTITY,
    LINEAGE,
    MODEL,
    NOTES,
    SUPERVISION,
    checkpoint_name,
)
from ..monitoring.heartbeat import heartbeat_times
from .events import EventReader, last_events, read_events, steps, stopped_at
from .folder import RunFolder
from .lineage import Lineage, Parent, find_parent, shown_lineage
from .untrusted import clean_result, file_text, number, text

MOST_CONFIG_TEXT = 1 << 16  # characters
MOST_RESULTS = 2000
MOST_CHILDREN = 200
_read_result = Cache(lambda data: clean_result(json.loads(data)), most=MOST_RESULTS).get
MOST_SUPERVISION_BYTES = 1 << 24  # of a look


class RunFiles:
    """The contents of a run folder, finished or not, read once.

    Attributes:
        config, environment: contents of `config.yaml`, and of `environment.json`, which is that of the first start.
        events, steps, starts: all events; the last record of each step; the `start` events.
        checkpoints: folder and `complete.json` of each complete checkpoint, by step.
        results, average_results: contents of all evaluation results, by the time they started; those of the weights, and those of
            their moving average.

    Raises:
        UserError: not a run folder, or one of its files is corrupt.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config: dict[str, Any] = stored_config(folder)
        self.environment: dict[str, Any] = RunFolder(folder).environment()
        self.events = read_events(folder / EVENTS)
        self.steps = steps(self.events)
        self.starts = [event for event in self.events if event["kind"] == "start"]
        self.checkpoints = list(complete_checkpoints(folder))
        results = [read_json(path) for path in result_files(folder)]
        results.sort(key=lambda result: (result["started"], result["suite"]))
        self.results = [result for result in results if not is_of_average(result["suite"])]
        self.average_results = [result for result in results if is_of_average(result["suite"])]

    @cached_property
    def lineage(self) -> Lineage | None:
        """The lineage of the run; None if it began with fresh weights and was never amended."""
        return shown_lineage(self.folder)

    @cached_property
    def earlier_steps(self) -> list[dict[str, Any]]:
        """The `step` events of the ancestors before the run's first step; those of ancestors that are gone are missing."""
        lineage = self.lineage
        if lineage is None or lineage.parent is None or not lineage.own_step:
            return []
        folder = find_parent(self.folder, lineage.parent)
        if folder is None or folder.resolve() == self.folder.resolve():
            return []
        try:
            parent = RunFiles(folder)
        except UserError:
            return []
        return [event for event in [*parent.earlier_steps, *parent.steps] if event["step"] <= lineage.own_step]

    @cached_property
    def children(self) -> list[tuple[str, Parent]]:
        """The branches of this run in the same folder of runs: their names, and the checkpoints that they began from."""
        return RunReader(self.folder).children()

    @property
    def finished(self) -> bool:
        """True if nothing was started after the last `finish`."""
        marks = [event["kind"] for event in self.events if event["kind"] in ("start", "finish")]
        return marks[-1:] == ["finish"]

    @cached_property
    def commits(self) -> list[str]:
        """The git commits that the run was trained with, in order, with the steps of each if there are several."""
        spans: list[tuple[str, int, int]] = []  # commit, first step, last step
        begins = [*self.starts, {"step": self.steps[-1]["step"] if self.steps else 0}]
        for start, following in pairwise(begins):
            source = start if "git_commit" in start else self.environment
            commit = source.get("git_commit") or "unknown"
            commit += " (with uncommitted changes)" if commit != "unknown" and source.get("git_dirty") else ""
            if spans and spans[-1][0] == commit:
                spans[-1] = (commit, spans[-1][1], following["step"])
            elif following["step"] > start["step"] or not spans:
                spans.append((commit, start["step"] + 1, following["step"]))
        if len(spans) < 2:
            return [commit for commit, *_ in spans]
        return [f"{commit} for steps {first:,} to {last:,}" for commit, first, last in spans]

    @cached_property
    def model_config(self) -> ModelConfig | None:
        """The config of the last complete checkpoint's model, if there is one."""
        return read_config(self.checkpoints[-1][0] / MODEL) if self.checkpoints else None

    def figure(self, name: str) -> Path:
        """The path of the figure of that name."""
        return self.folder / "figures" / f"{name}.png"


class RunReader:
    """The contents of a run folder that other processes may be writing; each part is read on request.

    A file that did not change is not read again, and of a growing log only what was appended. What is missing, half-written,
    damaged or was removed with its folder counts as empty; so does what is no regular file, and a link that leads out of the run
    folder. It never raises.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._supervision = EventReader(folder / SUPERVISION, skip_damaged=True, inside=folder)
        self._failures: dict[str, str] = {}

    def stamps(self) -> tuple[Stamp, ...]:
        """Stamps of all files that a `RunReader` reads, that of `config.yaml` first; they change when any of them does."""
        place = str(self.folder)
        names = (CONFIG, NOTES, LINEAGE, EVENTS, SUPERVISION, FINISHED, ERROR, HEARTBEATS, CHECKPOINTS, EVALS)
        results = (stamp(folder) for folder in subfolder_paths(f"{place}/{EVALS}"))
        return (*(stamp(f"{place}/{name}") for name in names), *results)

    def config(self) -> dict[str, Any]:
        """The contents of `config.yaml`."""
        path = self.folder / CONFIG
        return (read_yaml_if_whole(path) if is_inside(path, self.folder) else None) or {}

    def lineage(self) -> Lineage | None:
        """The lineage of the run."""
        path = self.folder / LINEAGE
        try:
            return shown_lineage(self.folder) if path.is_file() and is_inside(path, self.folder) else None
        except (OSError, RecursionError):
            return None

    def children(self) -> list[tuple[str, Parent]]:
        """The branches of this run in the same folder of runs, by step: their names, and the checkpoints that they began from."""
        own = (read_json_if_whole(self.folder / IDENTITY) or {}).get("run_id", self.folder.name)
        children = []
        for path in subfolders(self.folder.resolve().parent):
            lineage = RunReader(path).lineage()
            if lineage and lineage.parent and lineage.parent.run_id == own and path.name != self.folder.name:
                children.append((text(path.name, 200), lineage.parent))
        return sorted(children, key=lambda child: (child[1].step, child[0]))[:MOST_CHILDREN]

    def notes(self) -> dict[str, Any]:
        """The contents of `notes.yaml`: `tags`, `note`, and whether the run is `archived`."""
        path = self.folder / NOTES
        stored = (read_yaml_if_whole(path) if is_inside(path, self.folder) else None) or {}
        tags = stored.get("tags")
        names = [text(tag, 40) for tag in tags[:20]] if isinstance(tags, list) else [text(tags, 40)]
        note = text(stored.get("note"), 4000)
        return {"tags": [name for name in names if name], "note": note, "archived": stored.get("archived") is True}

    def config_text(self) -> str:
        """The text of `config.yaml`, damaged or not."""
        path = self.folder / CONFIG
        return file_text(path, MOST_CONFIG_TEXT) if is_inside(path, self.folder) else ""

    def environment(self) -> dict[str, Any]:
        """The contents of `environment.json`."""
        return self._json(ENVIRONMENT) or {}

    def last_events(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The last events of the training, oldest first: as many as `enough` requires, or all of them."""
        path = self.folder / EVENTS
        return last_events(path, enough) if is_inside(path, self.folder) else []

    def stopped_at(self) -> int | None:
        """The step at which training stopped or finished; None while it goes on, or after a crash."""
        path = self.folder / EVENTS
        return stopped_at(path) if is_inside(path, self.folder) else None

    def finished(self) -> bool:
        """Whether training reached its horizon."""
        return (self.folder / FINISHED).is_file()

    def error_since(self, seconds: float) -> str | None:
        """The error that stopped the run, if it was recorded at `seconds` (unix time) or later."""
        recorded = stamp(self.folder / ERROR)
        if recorded is None or recorded[0] / 1e9 < seconds:
            return None
        return text((self._json(ERROR) or {}).get("message")) or "see error.json"

    def complete_steps(self) -> list[tuple[int, float]]:
        """Step and time (unix seconds) of the complete checkpoints, oldest first."""
        return complete_steps(self.folder)

    def heartbeats(self) -> list[tuple[str, float]]:
        """Node and time (unix seconds, by the file system's clock) of every rank's last heartbeat."""
        inside = is_inside(self.folder / HEARTBEATS, self.folder)
        return heartbeat_times(RunFolder(self.folder)) if inside else []

    def result_names(self) -> set[str]:
        """Names of the evaluations that have a result, as `step_00000100/language`."""
        return {f"{path.parent.name}/{path.stem}" for path in result_files(self.folder)}

    def results(self) -> list[dict[str, Any]]:
        """The evaluation results with the values that fit (`untrusted.clean_result`), by step; the newest 2,000."""
        paths = (path for path in result_files(self.folder)[-MOST_RESULTS:] if is_inside(path, self.folder))
        results = [result for path in paths if (result := _read_result(path))]
        return sorted(results, key=lambda result: result["step"])

    def finished_step(self) -> int | None:
        """The step in `finished.json`; None without that file or step."""
        step = number((self._json(FINISHED) or {}).get("step"))
        return None if step is None else int(step)

    def _json(self, name: str | Path) -> dict[str, Any] | None:
        path = self.folder / name
        return read_json_if_whole(path) if is_inside(path, self.folder) else None

    def failures(self) -> dict[str, str]:
        """Message of every evaluation that failed for good, by `step_00000100/language`; it may have been done since."""
        events = self._supervision.read(MOST_SUPERVISION_BYTES)
        if self._supervision.restarted:
            self._failures = {}
        for event in events:
            if event["kind"] == "evaluation_failed":
                name = f"{checkpoint_name(event.get('step', 0))}/{text(event.get('suite'), 80)}"
                self._failures[name] = text(event.get("message"))
        return dict(self._failures)
