"""The event log of a run, `events.jsonl`: all measurements, one JSON object per line.

Every event has `kind` and `time` (unix seconds). The kinds and their fields:

- `start`: `step` (of the checkpoint it resumes from, else 0), `tokens`, `pid` (of rank 0), `same_process` (another batch size or
  an amendment begins, in the same process), `world_size`, `zero_stage`, `sequence_parallel`, `device`, `cuda_graphs` ("blocks",
  or why there are none), `nodes` (the node of each rank); of rank 0 also `git_commit`, `git_dirty`, `versions`, `python`,
  `platform`, `host` and `hardware`
- `compile`: `step`, `kernels` (that the training launches), `done` (looked for in Triton's cache so far), `compiled` (of them
  missing before); the last one also `seconds` (of the process that compiles) and `waited_seconds` (in which launches waited for
  it). Or `at_launch`: names of kernels that were missing all the same, and were compiled within a step
- `startup`: `step` (the first of this process), `phases` (seconds of the start by phase, in order: `command` up to the process of
  rank 0, its `imports`, `process_group`, `data`, `engine` with the model, `state` of a checkpoint, `kernels` that launches waited
  for, and the rest of `first_step`, with what torch.compile and CUDA graphs make in it), `total_seconds`
- `step`: `step`, `loss` (nats per label that counts), `loss_text` and `loss_recall` (of the rows of each kind, in batches that
  have them), `bits_per_byte` (of the text), `grad_norm` (before clipping), `gate_mean` (with `train.gate_penalty`:
  mean of sigmoid(gate logit)), `learning_rate`, `tokens` (cumulative), `tokens_per_second`, `mfu` (null without a known
  peak), `memory_gib` (rank 0), `data_stall_seconds`; formulas in `metrics.py`; `epochs` (by text source: how often it was
  read so far), `loss_by_source` (with several text sources: of those that the batch has); every ten seconds `cpu_percent`,
  `host_memory_percent`, `process_gib`, `gpu_percent` and `gpu_memory_percent` (`machine.py`; of rank 0's machine and GPU)
- `health`: `step`, `layers` (a `LayerHealth` of every SKA layer)
- `warning`: `step`, `message`; a SKA layer left its range, or a checkpoint was damaged
- `checkpoint`: `step`, `path`, `seconds` (from start to complete), `stall_seconds` (in which training waited)
- `straggler`: `step`, `rank`, `node`, `seconds` (of computation a step), `median_seconds` (the same over all ranks), `message`
- `skip`: `step`, `reason`; the step's gradient was not finite and no weight was changed
- `rollback`: `step` (of the checkpoint it returned to), `from_step`, `reason`
- `stop`: `step`, `tokens`, `reason` (a signal, `run.time_limit` or `run.stop_step`); training ended before its last step
- `finish`: `step`, `tokens`

The processes that supervise a run write to a second log, `supervision.jsonl`; readers of a run's events get both. Its kinds:

- `attempt`: `number`, `reason`, `pid`; the pipeline's process (the driver) was started
- `lost`: `what` (worker, node, head, driver), `name`, `message`; it died, and training is started again
- `hang`: `what` (worker, driver), `name`, `message`, and of a worker `rank`, `node`, `pid`; it did not answer or made no step,
  and is replaced
- `evaluation`: `step`, `suite`, `node`, `seconds`; an evaluation is complete
- `evaluation_failed`: `step`, `suite`, `message`; an evaluation failed at every attempt
- `amend`: `step`, `changes` (old and new value by key); the run has another configuration from that step on
"""

import heapq
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from ...models.common.cached_files import is_inside
from ...models.common.errors import UserError
from ...models.common.files import FULL
from ...models.common.renamed_keys import with_new_keys
from ...models.common.run_layout import EVENTS, SUPERVISION
from .untrusted import clean_event

SUPERVISION_KINDS = ("attempt", "lost", "hang", "evaluation", "evaluation_failed", "amend")
STARTUP_KINDS = ("compile", "startup")  # on the way to the first step, which counts as waiting from the start on
MARKS = ("start", "step", "stop", "finish")  # kinds of which the last says whether training goes on
MARK_BYTES = 256  # kept of what was read, to recognize a replaced file
TAIL_BYTES = 1 << 12  # read first from the end of a log
MOST_TAIL_BYTES = 1 << 24  # read at most
LONGEST_LINE = 1 << 20  # bytes; a longer line is damaged


class EventLog:
    """Appends events to a log file; each `write` passes its event to the operating system at once.

    A torn last line, left by a crash, is cut off, so that new events start on a line of their own. On a full disk events are kept
    in memory, and follow when there is space again: a run must not end because of its log, and its next checkpoint says what is
    wrong.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (kept open for the life of the run)
        self._waiting = b""
        if size := self._file.tell():
            with open(self.path, "rb") as file:
                whole = file.read().rfind(b"\n") + 1
            if whole < size:
                self._file.truncate(whole)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event, with the current `time` by default; NaN and infinity, which JSON lacks, become null."""
        event = {"kind": kind, "time": time.time()} | fields
        line = json.dumps(_finite(event), allow_nan=False) + "\n"
        self._waiting += line.encode()
        self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        """Write what is waiting; part of a line may be written, and the rest of it later."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if error.errno not in FULL:
                raise

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class EventReader:
    """Reads growing logs of events: each `read` returns the events that were completed since the last call.

    Attributes:
        restarted: whether the last `read` began again at the first line, since a log was replaced, shortened or removed; the
            events that earlier calls returned no longer count then.
        damage: which lines were left out as they are not events, one line of text; empty if there are none.
        unread: bytes that the last `read` left for the next one.
    """

    def __init__(self, *logs: Path, skip_damaged: bool = False, inside: Path | None = None):
        """Read the logs at the given paths; with `skip_damaged` lines that are not events are left out, otherwise `read` raises
        an error.

        Args:
            inside: a link that leads out of this folder counts as a missing log.
        """
        self._logs = [_GrowingLog(Path(path), skip_damaged, inside) for path in logs]
        self._rewound = False
        self.restarted = False

    @classmethod
    def of_run(cls, run_folder: Path) -> "EventReader":
        """A reader of both logs of a run."""
        return cls(run_folder / EVENTS, run_folder / SUPERVISION)

    @classmethod
    def of_any_run(cls, run_folder: Path) -> "EventReader":
        """A tolerant reader of both logs of a run that others may have written: no damaged lines, no links out of its folder."""
        return cls(run_folder / EVENTS, run_folder / SUPERVISION, skip_damaged=True, inside=run_folder)

    @property
    def damage(self) -> str:
        return "; ".join(log.damage for log in self._logs if log.damage)

    @property
    def unread(self) -> int:
        return sum(log.unread for log in self._logs)

    def start_at_end(self, most_bytes: int) -> None:
        """Let the first `read` begin at the first line within the given number of bytes before the end of each log."""
        for log in self._logs:
            log.start_at_end(most_bytes)

    def read(self, most_bytes: int | None = None) -> list[dict[str, Any]]:
        """The new events, merged by time, each log in its own order; a missing log has none.

        A last line without its newline waits for the next call.

        Args:
            most_bytes: read at most so much of each log; None for all of it.

        Raises:
            UserError: a whole line is not an event; the next call tries it again.
        """
        appended = [log.appended(most_bytes) for log in self._logs]
        if None in appended:
            for log in self._logs:
                log.rewind()
            self._rewound = True
            appended = [log.appended(most_bytes) for log in self._logs]
        parsed = [log.parse(data or b"") for log, data in zip(self._logs, appended, strict=True)]
        for log, (_, whole_lines) in zip(self._logs, parsed, strict=True):
            log.advance(whole_lines)
        self.restarted, self._rewound = self._rewound, False
        return list(heapq.merge(*(events for events, _ in parsed), key=lambda event: event["time"]))


class _GrowingLog:
    """The position up to which one log was read, with the last bytes before it, by which a replaced file is recognized."""

    def __init__(self, path: Path, skip_damaged: bool, inside: Path | None):
        self._path, self._skip_damaged, self._inside, self._tail_bytes = path, skip_damaged, inside, 0
        self.rewind()

    def rewind(self) -> None:
        self._offset, self._lines, self._mark = 0, 0, b""
        self._damaged, self._first_damaged, self.unread = 0, "", 0
        if self._tail_bytes:
            self.start_at_end(self._tail_bytes)

    @property
    def damage(self) -> str:
        others = f" and {self._damaged - 1:,} more" if self._damaged > 1 else ""
        return self._first_damaged and f"{self._first_damaged}{others}: remove that line, the others stay valid"

    def start_at_end(self, most_bytes: int) -> None:
        self._tail_bytes = most_bytes
        with suppress(OSError), _open_log(self._path, self._inside) as file:
            begin = max(0, file.seek(0, os.SEEK_END) - most_bytes)
            if begin:
                file.seek(begin)
                self._mark = file.readline(LONGEST_LINE)
                self._offset = begin + len(self._mark)
                self._mark = self._mark[-MARK_BYTES:]

    def appended(self, most_bytes: int | None) -> bytes | None:
        """The bytes after the position; None if the file no longer holds what was read before it."""
        try:
            with _open_log(self._path, self._inside) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(self._offset - len(self._mark))
                data = file.read() if most_bytes is None else file.read(len(self._mark) + most_bytes)
        except OSError as error:
            if not self._skip_damaged and not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise
            data, size = b"", 0
        self.unread = max(0, size - self._offset - len(data) + len(self._mark))
        if not data.startswith(self._mark):
            return None
        return data[len(self._mark) :]

    def parse(self, data: bytes) -> tuple[list[dict[str, Any]], bytes]:
        """The events in `data`, and the whole lines that held them."""
        whole_lines = data[: data.rfind(b"\n") + 1]
        if self.unread and not whole_lines:  # part of a line that is longer than what may be read at once
            whole_lines = data
        events = []
        for number, line in enumerate(whole_lines.splitlines(), start=self._lines + 1):
            event = _parse_event(line)
            if event is not None:
                events.append(event)
            elif not self._skip_damaged:
                raise UserError(f"{self._path}, line {number} is not an event: remove that line, the others stay valid")
            else:
                self._damaged += 1
                self._first_damaged = self._first_damaged or f"{self._path}, line {number} is not an event"
        return events, whole_lines

    def advance(self, whole_lines: bytes) -> None:
        self._offset += len(whole_lines)
        self._lines += whole_lines.count(b"\n")
        self._mark = (self._mark + whole_lines)[-MARK_BYTES:]


def read_events(path: Path) -> list[dict[str, Any]]:
    """All complete events of a log and of the supervision log beside it, merged as by `EventReader.read`.

    Raises:
        UserError: a whole line is not an event.
    """
    return EventReader(Path(path), Path(path).with_name(SUPERVISION)).read()


def last_events(path: Path, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The last events of one log, oldest first, read from its end: as many as `enough` requires, or all of them.

    A torn last line and damaged lines are left out, and what lies more than `MOST_TAIL_BYTES` before the end. A missing log has no
    events.
    """
    try:
        with _open_log(path) as file:
            size = file.seek(0, os.SEEK_END)
            length = TAIL_BYTES
            while True:
                begin = max(0, size - length)
                file.seek(begin)
                data = file.read(size - begin)
                # The first line may be torn unless it is at the file's start.
                lines = data[data.find(b"\n") + 1 if begin else 0 : data.rfind(b"\n") + 1].splitlines()
                events = [event for event in map(_parse_event, lines) if event is not None]
                if begin == 0 or enough(events) or length >= MOST_TAIL_BYTES:
                    return events
                length *= 8
    except OSError:
        return []


def stopped_at(path: Path) -> int | None:
    """The step at which training stopped or finished, by its log; see `stopped_step`."""
    return stopped_step(last_events(path, lambda tail: any(event["kind"] in MARKS for event in tail)))


def stopped_step(events: list[dict[str, Any]]) -> int | None:
    """The step at which training stopped or finished, by its last events; None if it started again since or never ended cleanly."""
    last = next((event for event in reversed(events) if event["kind"] in MARKS), None)
    return last.get("step") if last is not None and last["kind"] in ("stop", "finish") else None


def _open_log(path: Path, inside: Path | None = None) -> BinaryIO:
    """Open a log; raises FileNotFoundError if the path is no regular file or leads out of the folder `inside`."""
    if inside is not None and not is_inside(path, inside):
        raise FileNotFoundError(f"{path} is missing, or leads out of {inside}")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(f"{path} is no regular file")
    return open(descriptor, "rb")


def _parse_event(line: bytes) -> dict[str, Any] | None:
    """The event of a line, with the new spellings of its keys; None if the line is not an event."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        event = from_json(line)  # twice as fast as `json`
    except ValueError:
        try:
            event = json.loads(line)  # takes lone surrogates
        except (ValueError, RecursionError):
            return None
    try:
        return clean_event(with_new_keys("event", event)) if isinstance(event, dict) else None
    except UserError:
        return None


def steps(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `step` events by step, ascending; of a step that was repeated after a crash, the last record."""
    last = {event["step"]: event for event in events if event["kind"] == "step"}
    return [last[step] for step in sorted(last)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
