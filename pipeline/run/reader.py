"""Reading a run folder: `RunFiles` once and in full, for a report; `RunReader` again and again, for those who watch a run.

Both read events by `events.py`, checkpoints and results by `evals/layout.py`; nothing else reads a run folder.
"""

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...evals.layout import complete_checkpoints, complete_steps, is_of_average, result_files, stored_config
from ...models import ModelConfig, read_config
from ...models.common.cached_files import Stamp, read_json_if_whole, read_yaml_if_whole, stamp, subfolder_paths
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
    LINEAGE,
    MODEL,
    SUPERVISION,
    checkpoint_name,
)
from ..monitoring.heartbeat import heartbeat_times
from .events import EventReader, last_events, read_events, steps, stopped_at
from .folder import RunFolder
from .lineage import Lineage, find_parent, shown_lineage


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
        """What the run began from and how it changed; None with fresh weights and one configuration."""
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

    @property
    def finished(self) -> bool:
        """True if nothing was started after the last `finish`."""
        marks = [event["kind"] for event in self.events if event["kind"] in ("start", "finish")]
        return marks[-1:] == ["finish"]

    @cached_property
    def commits(self) -> list[str]:
        """The commits that trained, in order, with the steps of each if there are several."""
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
    """The contents of a run folder while other processes write it, each read when it is asked for.

    A file that did not change is not read again, and of a growing log only what was appended. What is missing, half-written,
    damaged or was removed with its folder counts as empty; it never raises.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._supervision = EventReader(folder / SUPERVISION, skip_damaged=True)
        self._failures: dict[str, str] = {}

    def stamps(self) -> tuple[Stamp, ...]:
        """Stamps of all files that a `RunReader` reads, that of `config.yaml` first; they change when any of them does."""
        place = str(self.folder)
        names = (CONFIG, LINEAGE, EVENTS, SUPERVISION, FINISHED, ERROR, HEARTBEATS, CHECKPOINTS, EVALS)
        results = (stamp(folder) for folder in subfolder_paths(f"{place}/{EVALS}"))
        return (*(stamp(f"{place}/{name}") for name in names), *results)

    def config(self) -> dict[str, Any]:
        """The contents of `config.yaml`."""
        return read_yaml_if_whole(self.folder / CONFIG) or {}

    def lineage(self) -> Lineage | None:
        """What the run began from, and how it changed."""
        return shown_lineage(self.folder)

    def config_text(self) -> str:
        """The text of `config.yaml`, damaged or not."""
        try:
            return (self.folder / CONFIG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def environment(self) -> dict[str, Any]:
        """The contents of `environment.json`."""
        return read_json_if_whole(self.folder / ENVIRONMENT) or {}

    def last_events(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The last events of the training, oldest first: as many as `enough` requires, or all of them."""
        return last_events(self.folder / EVENTS, enough)

    def stopped_at(self) -> int | None:
        """The step at which training stopped or finished; None while it goes on, or after a crash."""
        return stopped_at(self.folder / EVENTS)

    def finished(self) -> bool:
        """Whether training reached its horizon."""
        return (self.folder / FINISHED).is_file()

    def error_since(self, seconds: float) -> str | None:
        """The error that stopped the run, if it was recorded at `seconds` (unix time) or later."""
        recorded = stamp(self.folder / ERROR)
        if recorded is None or recorded[0] / 1e9 < seconds:
            return None
        return str((read_json_if_whole(self.folder / ERROR) or {}).get("message", "see error.json"))

    def complete_steps(self) -> list[tuple[int, float]]:
        """Step and time (unix seconds) of the complete checkpoints, oldest first."""
        return complete_steps(self.folder)

    def heartbeats(self) -> list[tuple[str, float]]:
        """Node and time (unix seconds, by the file system's clock) of every rank's last heartbeat."""
        return heartbeat_times(RunFolder(self.folder))

    def result_names(self) -> set[str]:
        """Names of the evaluations that have a result, as `step_00000100/language`."""
        return {f"{path.parent.name}/{path.stem}" for path in result_files(self.folder)}

    def results(self) -> list[dict[str, Any]]:
        """The evaluation results, by step."""
        results = [result for path in result_files(self.folder) if (result := read_json_if_whole(path))]
        whole = [r for r in results if isinstance(r.get("metrics"), dict) and "suite" in r and "step" in r]
        return sorted(whole, key=lambda result: result["step"])

    def failures(self) -> dict[str, str]:
        """Message of every evaluation that failed for good, by `step_00000100/language`; it may have been done since."""
        events = self._supervision.read()
        if self._supervision.restarted:
            self._failures = {}
        for event in events:
            if event["kind"] == "evaluation_failed":
                name = f"{checkpoint_name(event.get('step', 0))}/{event.get('suite')}"
                self._failures[name] = str(event.get("message", ""))
        return dict(self._failures)
