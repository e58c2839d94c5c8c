"""The summary of a run in one row, for `echo-lm status` and the dashboard, read cheaply from its folder."""

import os
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...evals.config import load_suite
from ...models.common.errors import UserError
from ...models.common.run_layout import (
    CHECKPOINTS,
    COMPLETE,
    CONFIG,
    ERROR,
    EVALS,
    EVENTS,
    FINISHED,
    HEARTBEATS,
    SUPERVISION,
    checkpoint_name,
)
from ...pipeline.monitoring.heartbeat import heartbeat_file, read_heartbeats
from ...pipeline.run.folder import RunFolder
from ..evaluation import jobs as evaluation_jobs
from .cached_files import Cache, Stamp, last_events, parse_events, parse_json_object, parse_yaml_mapping, stamp
from .state import HEARTBEAT_SILENT_SECONDS, run_state

CHECKPOINT_PREFIX = "step_"
# Steps to read from the end of a log: enough for their mean duration.
PACE_STEPS = 3

read_config = Cache(parse_yaml_mapping).get
read_record = Cache(parse_json_object).get
read_log = Cache(parse_events).get


@dataclass(frozen=True)
class RunSummary:
    """One row of a table of runs; values that the files lack are None.

    Attributes:
        name: of the folder.
        state: see `state.run_state`.
        step, steps: last step done, and the horizon.
        loss: nats per masked token at the last step.
        eta_seconds: remaining training time at the speed of the last step; None unless it runs.
        checkpoint: step of the last complete checkpoint; `checkpoint_time` in unix seconds.
        done, pending, failed: numbers of evaluations.
        nodes: name of each node that trains it now, with the number of its workers, by name.
        updated: unix seconds of the last event.
        problem: why the run could not be read or what stopped it, one line.
    """

    name: str
    state: str
    model: str = ""
    data: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    eta_seconds: float | None = None
    checkpoint: int | None = None
    checkpoint_time: float | None = None
    done: int = 0
    pending: int = 0
    failed: int = 0
    nodes: tuple[tuple[str, int], ...] = ()
    updated: float = 0.0
    problem: str | None = None


@dataclass(frozen=True)
class RunSnapshot:
    """The contents of a run's files at one moment; together with the time they determine the summary.

    Attributes:
        heartbeats: node and time (unix seconds) of each rank's last heartbeat.
    """

    name: str
    config: dict[str, Any]
    events: list[dict[str, Any]]
    finished: bool
    error: str | None
    checkpoints: list[tuple[int, float]]
    heartbeats: list[tuple[str, float]]
    done: int
    failed: int
    due: int
    updated: float

    def summary(self, now: float) -> RunSummary:
        """The summary at time `now` (unix seconds)."""
        if not self.config:
            return RunSummary(self.name, "crashed", problem="config.yaml is damaged", updated=self.updated)
        last = next((event for event in reversed(self.events) if event["kind"] == "step"), {})
        train, stop_step = section(self.config, "train"), section(self.config, "run").get("stop_step")
        checkpoint, checkpoint_time = self.checkpoints[-1] if self.checkpoints else (None, None)
        state = run_state(
            self.events,
            finished=self.finished,
            error=self.error is not None,
            reached_stop=stop_step is not None and checkpoint == stop_step,
            heartbeat=max((time for _, time in self.heartbeats), default=None),
            now=now,
        )
        step, steps, rate = last.get("step", 0), train.get("steps", 0), last.get("tokens_per_second")
        running = state == "running" and rate
        return RunSummary(
            name=self.name,
            state=state,
            model=str(section(self.config, "model").get("preset", "")),
            data=str(section(self.config, "data").get("name", "")),
            step=step,
            steps=steps,
            loss=last.get("loss"),
            tokens_per_second=rate,
            mfu=last.get("mfu"),
            eta_seconds=(steps - step) * train.get("batch_tokens", 0) / rate if running else None,
            checkpoint=checkpoint,
            checkpoint_time=checkpoint_time,
            done=self.done,
            pending=self.due - self.done - self.failed,
            failed=self.failed,
            nodes=tuple(
                sorted(Counter(node for node, time in self.heartbeats if now - time < HEARTBEAT_SILENT_SECONDS).items())
            ),
            updated=self.updated,
            problem=self.error,
        )


def signature(folder: Path) -> tuple[Stamp, ...]:
    """Stamps of all files that `read_run` reads; they change when any of them does."""
    files = (
        CONFIG,
        EVENTS,
        SUPERVISION,
        FINISHED,
        ERROR,
        HEARTBEATS,
        CHECKPOINTS,
        EVALS,
    )
    place = str(folder)
    results = (stamp(entry) for entry in _entries(f"{place}/evals"))
    return (*(stamp(f"{place}/{name}") for name in files), *results)


def read_run(folder: Path) -> RunSnapshot:
    """Read the files that a run's summary needs; missing files count as empty."""
    config = read_config(folder / CONFIG) or {}
    events = last_events(folder / EVENTS, _enough)
    last_event_time = events[-1]["time"] if events else 0.0
    error = stamp(folder / ERROR)
    error_message = None
    if error is not None and error[0] / 1e9 >= last_event_time:
        error_message = str((read_record(folder / ERROR) or {}).get("message", "see error.json"))
    checkpoints = complete_steps(folder)
    due = due_results(config, [step for step, _ in checkpoints])
    result_files = {name for entry in _entries(folder / EVALS) for name in _names(entry)}
    done = [name for name in due if f"{name}.json" in result_files]
    failed = [name for name in failures(folder) if name in due and name not in done]
    finished = (folder / FINISHED).is_file()
    config_stamp = stamp(folder / CONFIG)
    return RunSnapshot(
        name=folder.name,
        config=config,
        events=events,
        finished=finished,
        error=error_message,
        checkpoints=checkpoints,
        heartbeats=[] if finished else heartbeats(folder),
        done=len(done),
        failed=len(failed),
        due=len(due),
        updated=last_event_time or (config_stamp[0] / 1e9 if config_stamp else 0.0),
    )


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a stored configuration; empty if it is no mapping."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name; none if it is missing."""
    return [Path(entry) for entry in _entries(folder)]


def _entries(folder: Path | str) -> list[str]:
    """Paths of the folders in a folder, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir())
    except OSError:
        return []


def complete_steps(folder: Path) -> list[tuple[int, float]]:
    """Step and time (unix seconds) of the complete checkpoints, oldest first."""
    steps = []
    for entry in _entries(folder / CHECKPOINTS):
        number = os.path.basename(entry).removeprefix(CHECKPOINT_PREFIX)
        complete = stamp(f"{entry}/{COMPLETE}")
        if complete and number.isdigit():
            steps.append((int(number), complete[0] / 1e9))
    return sorted(steps)


def heartbeats(folder: Path) -> list[tuple[str, float]]:
    """Node and time (unix seconds, by the file system's clock) of every rank's last heartbeat."""
    run = RunFolder(folder)
    stamps = ((heartbeat.node, stamp(heartbeat_file(run, heartbeat.rank))) for heartbeat in read_heartbeats(run))
    return [(node, written[0] / 1e9) for node, written in stamps if written]


def failures(folder: Path) -> dict[str, str]:
    """Message of every evaluation that failed for good, by `step_00000100/language`; it may have been done since."""
    failed = (event for event in read_log(folder / SUPERVISION) or () if event["kind"] == "evaluation_failed")
    return {f"{checkpoint_name(e.get('step', 0))}/{e.get('suite')}": str(e.get("message", "")) for e in failed}


def due_results(config: dict[str, Any], steps: list[int]) -> list[str]:
    """Names (`step_00000100/language`) of all evaluations that are due at the checkpoints `steps`."""
    suites = dict.fromkeys(suite_name(name) for name in section(config, "evaluation").get("suites") or ())
    due = [step for step in steps if is_due(config, step)]
    return [f"{checkpoint_name(step)}/{suite}" for step in due for suite in suites]


def is_due(config: dict[str, Any], step: int) -> bool:
    """Whether an evaluation of `step` is due by a stored configuration, as `evaluation_jobs.is_due`."""
    train, evaluation = section(config, "train"), section(config, "evaluation")
    try:
        return evaluation_jobs.is_due(
            step,
            steps=train["steps"],
            batch_tokens=train["batch_tokens"],
            checkpoint_every=section(config, "run")["checkpoint_every"],
            every=evaluation["every"],
            every_tokens=evaluation["every_tokens"],
        )
    except (KeyError, TypeError):  # of an older version
        return False


@lru_cache(maxsize=256)
def suite_name(name: str) -> str:
    """The name of a suite in its results; for a suite given by path, the name in its file."""
    try:
        return load_suite(name).name
    except UserError:  # a file that was removed, or is on another machine
        return Path(name).stem


def _names(folder: str) -> list[str]:
    """Names (`step_00000100/language.json`) of the files in `.../step_00000100`."""
    try:
        return [f"{os.path.basename(folder)}/{name}" for name in os.listdir(folder)]
    except OSError:
        return []


def _enough(events: list[dict[str, Any]]) -> bool:
    return sum(event["kind"] == "step" for event in events) >= PACE_STEPS
