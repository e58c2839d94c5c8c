"""The summary of a run in one row, for `echo-lm status` and the dashboard, read cheaply from its folder."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...evals.layout import is_suite_file
from ...models.common.cached_files import read_yaml_if_whole, stamp
from ...models.common.run_layout import CONFIG, checkpoint_name
from ...pipeline.config import TrainSection
from ...pipeline.run.events import stopped_step
from ...pipeline.run.reader import RunReader
from ...pipeline.run.untrusted import computed_config, config_problem, number, text
from ...pipeline.schedule import tokens_before
from ..evaluation import jobs as evaluation_jobs
from .state import HEARTBEAT_SILENT_SECONDS, run_state

# Steps to read from the end of a log: enough for their mean duration.
PACE_STEPS = 3


@dataclass(frozen=True)
class RunSummary:
    """One row of a table of runs; values that the files lack are None.

    Attributes:
        name: of the folder.
        state: see `state.run_state`; "damaged" if its files cannot be read or its configuration is of another version.
        step, steps: last step done, and the horizon.
        loss: nats per masked token at the last step.
        eta_seconds: remaining training time at the speed of the last step; None unless it runs.
        checkpoint: step of the last complete checkpoint; `checkpoint_time` in unix seconds.
        done, pending, failed: numbers of evaluations.
        nodes: name of each node that trains it now, with the number of its workers, by name.
        updated: unix seconds of the last event.
        problem: why the run could not be read or what stopped it, one line.
        tags, note, archived: what people say of the run in `notes.yaml`.
        parent: name and step of the run that it began from, `trunk@800`; empty with fresh weights.
        sources: name of each text source, how often it was read, and its loss in the last step, if that has any.
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
    parent: str = ""
    tags: tuple[str, ...] = ()
    note: str = ""
    archived: bool = False
    sources: tuple[tuple[str, float, float | None], ...] = ()


@dataclass(frozen=True)
class RunSnapshot:
    """The contents of a run's files at one moment; together with the time they determine the summary.

    Attributes:
        config: what is computed with of the stored configuration (`untrusted.computed_config`).
        heartbeats: node and time (unix seconds) of each rank's last heartbeat.
        damage: what is wrong with `config.yaml`; empty if nothing.
        finished_step: the step in `finished.json`.
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
    parent: str = ""
    damage: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    finished_step: int | None = None
    segments: tuple[tuple[int, TrainSection], ...] = ()

    def summary(self, now: float) -> RunSummary:
        """The summary at time `now` (unix seconds)."""
        last = next((event for event in reversed(self.events) if event["kind"] == "step"), {})
        train, stop_step = self.config["train"], self.config["run"].get("stop_step")
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
        if self.finished:
            step = max(step, self.finished_step or 0)  # the lines of the log may be out of order
        remaining = tokens_at(steps, self.segments, train) - tokens_at(min(step, steps), self.segments, train)
        eta_seconds = remaining / rate if state == "running" and rate and rate > 0 else None
        state = "damaged" if self.damage else state
        return RunSummary(
            name=self.name,
            state=state,
            model=self.config["model"]["preset"],
            data=self.config["data"]["name"],
            step=step,
            steps=steps,
            loss=last.get("loss"),
            tokens_per_second=rate,
            mfu=last.get("mfu"),
            eta_seconds=eta_seconds,
            checkpoint=checkpoint,
            checkpoint_time=checkpoint_time,
            done=self.done,
            pending=self.due - self.done - self.failed,
            failed=self.failed,
            nodes=tuple(
                sorted(Counter(node for node, time in self.heartbeats if now - time < HEARTBEAT_SILENT_SECONDS).items())
            ),
            updated=self.updated,
            problem=f"{CONFIG} is damaged: {self.damage}" if self.damage else self.error,
            parent=self.parent,
            tags=tuple(self.notes.get("tags", ())),
            note=self.notes.get("note", ""),
            archived=self.notes.get("archived", False),
            sources=_sources(last),
        )


def summarize(run: RunReader, now: float) -> RunSummary:
    """The summary of a run at time `now` (unix seconds), whatever its folder holds."""
    try:
        return read_run(run).summary(now)
    except Exception as error:  # a folder with unforeseen contents must not hide the others
        return unreadable(run.folder, error)


def read_run(run: RunReader) -> RunSnapshot:
    """Read the files that a run's summary needs; missing files count as empty."""
    stored = run.config()
    config = computed_config(stored)
    events = run.last_events(_enough)
    last_event_time = events[-1]["time"] if events else 0.0
    checkpoints = run.complete_steps()
    due = due_results(run, config, [step for step, _ in checkpoints], stopped_step(events))
    results = run.result_names()
    done = [name for name in due if name in results]
    failed = [name for name in run.failures() if name in due and name not in done]
    finished = run.finished()
    config_stamp = stamp(run.folder / CONFIG)
    return RunSnapshot(
        name=shown_name(run.folder.name),
        config=config,
        events=events,
        finished=finished,
        error=run.error_since(last_event_time),
        checkpoints=checkpoints,
        heartbeats=[] if finished else run.heartbeats(),
        done=len(done),
        failed=len(failed),
        due=len(due),
        updated=last_event_time or (config_stamp[0] / 1e9 if config_stamp else 0.0),
        parent=text(_parent(run), 200),
        damage=config_problem(stored) if stored else "no YAML of sections, no regular file, or a link that leads out",
        notes=run.notes(),
        finished_step=run.finished_step() if finished else None,
        segments=hyperparameters(run),
    )


def damaged(folder: Path, reason: str) -> RunSummary:
    """The row of a run that cannot be read at all."""
    return RunSummary(shown_name(folder.name), "damaged", problem=text(reason))


def unreadable(folder: Path, error: Exception) -> RunSummary:
    """The row of a run whose reading raised an error."""
    return damaged(folder, f"it cannot be read ({type(error).__name__}: {text(str(error), 200)})")


def shown_name(name: str) -> str:
    """The name of a folder as text: bytes that are not UTF-8 are replaced."""
    return os.fsencode(name).decode(errors="replace")


def _sources(step: dict[str, Any]) -> tuple[tuple[str, float, float | None], ...]:
    epochs, losses = step.get("epochs"), step.get("loss_by_source")
    if not isinstance(epochs, dict):
        return ()
    losses = losses if isinstance(losses, dict) else {}
    counts = {name: number(count) for name, count in epochs.items()}
    return tuple((text(name), count, number(losses.get(name))) for name, count in counts.items() if count is not None)


def _parent(run: RunReader) -> str:
    lineage = run.lineage()
    if lineage is None or lineage.parent is None:
        return ""
    return f"{lineage.parent.run}@{lineage.parent.step}" if lineage.parent.run_id else lineage.parent.run


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a stored configuration; empty if it is no mapping."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def due_results(run: RunReader, config: dict[str, Any], steps: list[int], stopped: int | None) -> list[str]:
    """Names (`step_00000100/language`) of all evaluations of a run that are due at the checkpoints `steps`.

    Args:
        stopped: where training left (`events.stopped_step`).
    """
    suites = dict.fromkeys(suite_name(name) for name in section(config, "evaluation").get("suites") or ())
    due = sorted(due_steps(run, config, steps, stopped))
    return [f"{checkpoint_name(step)}/{suite}" for step in due for suite in suites]


def due_steps(run: RunReader, config: dict[str, Any], steps: list[int], stopped: int | None) -> set[int]:
    """The checkpoints among `steps` that a run's stored configuration wants evaluated (`evaluation_jobs.due_steps`)."""
    train, evaluation = section(config, "train"), section(config, "evaluation")
    try:
        segments = hyperparameters(run) if evaluation["every_tokens"] else ()
        return evaluation_jobs.due_steps(
            {step: tokens_at(step, segments, train) for step in sorted(steps)},
            last_step=train["steps"],
            checkpoint_every=section(config, "run")["checkpoint_every"],
            every=evaluation["every"],
            every_tokens=evaluation["every_tokens"],
            stopped_step=stopped,
        )
    except (KeyError, TypeError):  # of an older version
        return set()


def hyperparameters(run: RunReader) -> tuple[tuple[int, TrainSection], ...]:
    """First step and hyperparameters of each segment of a run; empty if its files are damaged or from another version."""
    try:
        lineage = run.lineage()
        stored = [(part.step, part.config) for part in lineage.segments] if lineage else [(0, run.config())]
        return tuple((step, TrainSection.model_validate(values["train"])) for step, values in stored)
    except (KeyError, TypeError, ValueError):
        return ()


def tokens_at(step: int, segments: Sequence[tuple[int, TrainSection]], train: dict[str, Any]) -> int:
    """Number of tokens trained on before a step; without segments, computed from the one batch size of the section `train`."""
    return tokens_before(step, segments) if segments else step * train.get("batch_tokens", 0)


@lru_cache(maxsize=256)
def suite_name(name: str) -> str:
    """The name of a suite in its results; for a suite given by path, the name in its file."""
    if not is_suite_file(name):
        return name
    stored = read_yaml_if_whole(Path(name)) or {}  # it may have been removed, be on another machine, or be no suite
    return text(stored.get("name"), 80) or Path(name).stem


def _enough(events: list[dict[str, Any]]) -> bool:
    return sum(event["kind"] == "step" for event in events) >= PACE_STEPS
