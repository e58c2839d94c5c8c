"""Values of MLflow metrics and parameters from a run's files."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.common.errors import UserError
from ...models.common.files import read_json
from ...pipeline.run.goodput import Goodput
from .values import mlflow_key, mlflow_keys

# Fields of a step under the names that MLflow shows on its page of system metrics.
SYSTEM = {
    "cpu_percent": "system/cpu_utilization_percentage",
    "host_memory_percent": "system/system_memory_usage_percentage",
    "process_gib": "system/process_memory_usage_gigabytes",
    "gpu_percent": "system/gpu_0_utilization_percentage",
    "gpu_memory_percent": "system/gpu_0_memory_usage_percentage",
}


@dataclass(frozen=True)
class Point:
    """One value of a metric, under its name in MLflow.

    Attributes:
        changes: whether the value may be another one later, as that of a suite that was changed and evaluated again.
    """

    key: str
    value: Any
    time: float  # unix seconds
    step: int
    changes: bool = False


@dataclass(frozen=True)
class EvaluationResult:
    """A result file: the values of one suite on one checkpoint.

    Attributes:
        name: checkpoint and suite, `step_00000020/recall-quick`.
        started, ended: unix seconds.
    """

    path: Path
    name: str
    step: int
    started: float
    ended: float
    metrics: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "EvaluationResult":
        """Read a result file.

        Raises:
            UserError: it is damaged.
        """
        content = read_json(path)
        try:
            return cls(
                path=path,
                name=f"{path.parent.name}/{path.stem}",
                step=int(content["step"]),
                started=float(content.get("started", content["ended"])),
                ended=float(content["ended"]),
                metrics=dict(content["metrics"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no result of a suite ({error!r}): delete it, and it is made again") from error

    def points(self) -> Iterator[Point]:
        """Its values, under names with the suite's: two suites may measure what has one name."""
        keys = mlflow_keys(self.metrics)
        for name, value in self.metrics.items():
            yield Point(mlflow_key(f"eval/{self.path.stem}/{keys[name]}"), value, self.ended, self.step, changes=True)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten a mapping to dotted keys and plain values; a list becomes one value, as JSON."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from flatten(item, f"{name}.")
        else:
            yield name, json.dumps(item) if isinstance(item, list) else item


class EventPoints:
    """The values of a run's events; counts what is numbered over the whole run."""

    def __init__(self) -> None:
        self.skipped = self.starts = 0
        self._goodput = Goodput()

    def read(self, events: Iterable[dict[str, Any]]) -> Iterator[Point]:
        for event in events:
            kind, time, step = event["kind"], event["time"], event.get("step", 0)
            self._goodput.add([event])
            if kind == "step":
                for key, value in event.items():
                    if key not in ("kind", "time", "step") and isinstance(value, int | float):
                        yield Point(SYSTEM.get(key) or mlflow_key(f"train/{key}"), value, time, step)
                keys = mlflow_keys(event.get("epochs") or {})  # of all sources, also of those that this batch has not
                for group in ("epochs", "loss_by_source"):
                    for name, value in (event.get(group) or {}).items():
                        if isinstance(value, int | float):
                            yield Point(mlflow_key(f"train/{group}/{keys.get(name, name)}"), value, time, step)
            elif kind == "checkpoint":
                yield Point("train/checkpoint_seconds", event["seconds"], time, step)
            elif kind == "skip":
                self.skipped += 1
                yield Point("train/skipped_steps", self.skipped, time, step)
            elif kind == "start" and not event.get("same_process"):
                yield Point("train/restarts", self.starts, time, step)
                self.starts += 1
            if kind in ("checkpoint", "stop", "finish") and self._goodput.share is not None:
                yield Point("train/goodput", self._goodput.share, time, step, changes=True)
                for name in ("productive", "lost", "waiting", "evaluating"):
                    yield Point(f"train/{name}_seconds", getattr(self._goodput, name), time, step, changes=True)
