"""A run in one row, for `echo-lm status` and the dashboard: read from its folder alone, as cheaply as can be."""

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
# How many steps the end of a log must hold: enough to know the pace.
PACE_STEPS = 3

read_config = Cache(parse_yaml_mapping).get
read_record = Cache(parse_json_object).get
read_log = Cache(parse_events).get


@dataclass(frozen=True)
class RunSummary:
    """One row of a table of runs. What a file does not say is None.

    Attributes:
        name: of the folder.
        state: see `state.run_state`.
        step, steps: done, and the horizon.
        loss: nats per masked token at the last step.
        eta_seconds: of the training, at the speed of the last step; None unless it runs.
        checkpoint: step of the last complete checkpoint; `checkpoint_time` in unix seconds.
        done, pending, failed: evaluations.
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
class RunReading:
    """A run's files as they were; the summary follows from it and the time.

    Attributes:
        beats: of each rank that left a sign of life its node and the time of the sign, in unix seconds.
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
    wanted: int
    updated: float

    def summary(self, now: float) -> RunSummary:
        """The row at a time (unix seconds)."""
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
            pending=self.wanted - self.done - self.failed,
            failed=self.failed,
            nodes=tuple(
                sorted(Counter(node for node, time in self.heartbeats if now - time < HEARTBEAT_SILENT_SECONDS).items())
            ),
            updated=self.updated,
            problem=self.error,
        )


def signature(folder: Path) -> tuple[Stamp, ...]:
    """Changes whenever anything that `read_run` reads does."""
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


def read_run(folder: Path) -> RunReading:
    """Read what a run's row needs; missing files are as if empty."""
    config = read_config(folder / CONFIG) or {}
    events = last_events(folder / EVENTS, _enough)
    last_time = events[-1]["time"] if events else 0.0
    error = stamp(folder / ERROR)
    message = None
    if error is not None and error[0] / 1e9 >= last_time:
        message = str((read_record(folder / ERROR) or {}).get("message", "see error.json"))
    checkpoints = complete_steps(folder)
    wanted = wanted_results(config, [step for step, _ in checkpoints])
    there = {name for entry in _entries(folder / EVALS) for name in _names(entry)}
    done = [name for name in wanted if f"{name}.json" in there]
    failed = [name for name in failures(folder) if name in wanted and name not in done]
    finished = (folder / FINISHED).is_file()
    config_stamp = stamp(folder / CONFIG)
    return RunReading(
        name=folder.name,
        config=config,
        events=events,
        finished=finished,
        error=message,
        checkpoints=checkpoints,
        heartbeats=[] if finished else heartbeats(folder),
        done=len(done),
        failed=len(failed),
        wanted=len(wanted),
        updated=last_time or (config_stamp[0] / 1e9 if config_stamp else 0.0),
    )


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a stored configuration; empty if it is not one."""
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
    found = []
    for entry in _entries(folder / CHECKPOINTS):
        number = os.path.basename(entry).removeprefix(CHECKPOINT_PREFIX)
        complete = stamp(f"{entry}/{COMPLETE}")
        if complete and number.isdigit():
            found.append((int(number), complete[0] / 1e9))
    return sorted(found)


def heartbeats(folder: Path) -> list[tuple[str, float]]:
    """Node and time (unix seconds, by the clock of the file system) of the last sign of life of every rank."""
    run = RunFolder(folder)
    stamps = ((heartbeat.node, stamp(heartbeat_file(run, heartbeat.rank))) for heartbeat in read_heartbeats(run))
    return [(node, written[0] / 1e9) for node, written in stamps if written]


def failures(folder: Path) -> dict[str, str]:
    """Message of every evaluation that was given up, by `step_00000100/language`; it may have been done since."""
    given_up = (event for event in read_log(folder / SUPERVISION) or () if event["kind"] == "evaluation_failed")
    return {f"{checkpoint_name(e.get('step', 0))}/{e.get('suite')}": str(e.get("message", "")) for e in given_up}


def wanted_results(config: dict[str, Any], steps: list[int]) -> list[str]:
    """`step_00000100/language` of every evaluation that the checkpoints call for."""
    suites = dict.fromkeys(suite_name(name) for name in section(config, "evaluation").get("suites") or ())
    due = [step for step in steps if is_due(config, step)]
    return [f"{checkpoint_name(step)}/{suite}" for step in due for suite in suites]


def is_due(config: dict[str, Any], step: int) -> bool:
    """`evaluation_jobs.is_due` of a stored configuration."""
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
    """The name that a suite's results carry: that of the file for one given by path."""
    try:
        return load_suite(name).name
    except UserError:  # a file that is gone, or of another machine
        return Path(name).stem


def _names(folder: str) -> list[str]:
    """`step_00000100/language.json` of the files in `.../step_00000100`."""
    try:
        return [f"{os.path.basename(folder)}/{name}" for name in os.listdir(folder)]
    except OSError:
        return []


def _enough(events: list[dict[str, Any]]) -> bool:
    return sum(event["kind"] == "step" for event in events) >= PACE_STEPS
