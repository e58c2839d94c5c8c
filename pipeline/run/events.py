"""`events.jsonl`: everything that a run measures, one JSON object a line.

Every event has `kind` and `time` (unix seconds). The kinds and their fields:

- `start`: `step` (the step that training goes on from), `tokens`, `pid` (of rank 0), `world_size`, `zero_stage`,
  `sequence_parallel`, `device`, `nodes` (name of the node of each rank)
- `step`: `step`, `loss` (nats per masked token), `loss_text` and `loss_recall` where the batch has such rows (a small one
  not at every step), `bits_per_byte` (of the text), `grad_norm` (before clipping), `gate_mean` (with `train.gate_penalty`:
  mean of sigmoid(gate logit)), `learning_rate`, `tokens` (cumulative), `tokens_per_second`, `mfu` (null without a known
  peak), `memory_gib` (rank 0), `data_stall_seconds`; formulas in `metrics.py`
- `health`: `step`, `layers` (a `LayerHealth` of every SKA layer)
- `warning`: `step`, `message`; a SKA layer left its range
- `checkpoint`: `step`, `path`, `seconds` (until complete), `stall_seconds` (training stood still)
- `straggler`: `step`, `rank`, `node`, `seconds` (that it computes a step), `median_seconds` (of all ranks), `message`
- `skip`: `step`, `reason`; the step's gradient was not finite and no weight was changed
- `rollback`: `step` (that training goes on from), `from_step`, `reason`
- `stop`: `step`, `tokens`, `reason`; left before the end
- `finish`: `step`, `tokens`

The processes that supervise a run write to a second log (`supervision.jsonl`, one writer at a time as here); readers of a run's
events get both. Its kinds:

- `attempt`: `number`, `reason`, `pid`; the pipeline's process (the driver) was started
- `lost`: `what` (worker, node, head, driver), `name`, `message`; something died, and training is started again
- `hang`: `what` (worker, driver), `name`, `message`, and of a worker `rank`, `node`, `pid`; it was silent or stuck and is replaced
- `evaluation`: `step`, `suite`, `node`, `seconds`; done
- `evaluation_failed`: `step`, `suite`, `message`; given up
"""

import heapq
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...models.common.errors import UserError
from ...models.common.renamed_keys import with_new_keys
from ...models.common.run_layout import SUPERVISION

SUPERVISION_KINDS = ("attempt", "lost", "hang", "evaluation", "evaluation_failed")


class EventLog:
    """Appends events to a file; `write` flushes each to the operating system.

    A torn last line, left by a crash, is cut off, so that new events start on a line of their own.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")  # noqa: SIM115 (kept open for the life of the run)
        if size := self._file.tell():
            with open(self.path, "rb") as file:
                whole = file.read().rfind(b"\n") + 1
            if whole < size:
                self._file.truncate(whole)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event, with the current `time` by default; NaN and infinity, which JSON lacks, become null."""
        event = {"kind": kind, "time": time.time()} | fields
        line = json.dumps(_finite(event), allow_nan=False) + "\n"
        self._file.write(line.encode())
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class EventTail:
    """Reads a growing log of events and its supervision log: each `read` returns the events completed since the last call."""

    def __init__(self, path: Path):
        self._files = [_Tail(Path(path)), _Tail(Path(path).with_name(SUPERVISION))]

    def read(self) -> list[dict[str, Any]]:
        """The new events, merged by time, each log in its own order; empty if there is no file yet.

        A last line without its newline waits for the next call.

        Raises:
            UserError: a whole line is not a JSON object.
        """
        return list(heapq.merge(*(tail.read() for tail in self._files), key=lambda event: event.get("time", 0)))


class _Tail:
    """Reads one growing file of events."""

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0
        self._lines = 0

    def read(self) -> list[dict[str, Any]]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        events = []
        for number, line in enumerate(whole.splitlines(), start=self._lines + 1):
            try:
                event = with_new_keys("event", json.loads(line))
                event["kind"]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(
                    f"{self.path}, line {number} is not an event: remove that line, the others stay valid"
                ) from error
            events.append(event)
        self._offset += len(whole)
        self._lines += len(events)
        return events


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole events of a log, in the order of writing; a torn last line is ignored, a missing file has none.

    Raises:
        UserError: a whole line is not a JSON object with a `kind`.
    """
    return EventTail(path).read()


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
