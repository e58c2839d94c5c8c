"""Reading a run folder as a whole."""

from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ...evals.layout import complete_checkpoints
from ...models import ModelConfig, read_config
from ...models.common.errors import UserError
from ...models.common.files import read_json
from ...models.common.run_layout import CONFIG, ENVIRONMENT, EVENTS, MODEL, RESULTS
from .events import read_events, steps


class RunFiles:
    """The contents of a run folder, finished or not, read once.

    Attributes:
        config, environment: contents of `config.yaml` and `environment.json`.
        events, steps, starts: all events; the last record of each step; the `start` events.
        checkpoints: folder and `complete.json` of each complete checkpoint, by step.
        results: contents of all evaluation results, by the time they started.

    Raises:
        UserError: not a run folder, or one of its files is corrupt.
    """

    def __init__(self, folder: Path):
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is not a run folder: it holds no config.yaml")
        self.folder = folder
        self.config: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) or {}
        environment = folder / ENVIRONMENT
        self.environment: dict[str, Any] = read_json(environment) if environment.is_file() else {}
        self.events = read_events(folder / EVENTS)
        self.steps = steps(self.events)
        self.starts = [event for event in self.events if event["kind"] == "start"]
        self.checkpoints = list(complete_checkpoints(folder))
        results = [read_json(path) for path in sorted(folder.glob(RESULTS))]
        self.results = sorted(results, key=lambda result: (result["started"], result["suite"]))

    @property
    def finished(self) -> bool:
        """True if nothing was started after the last `finish`."""
        marks = [event["kind"] for event in self.events if event["kind"] in ("start", "finish")]
        return marks[-1:] == ["finish"]

    @cached_property
    def model_config(self) -> ModelConfig | None:
        """The config of the last complete checkpoint's model, if there is one."""
        return read_config(self.checkpoints[-1][0] / MODEL) if self.checkpoints else None

    def figure(self, name: str) -> Path:
        """The path of the figure of that name."""
        return self.folder / "figures" / f"{name}.png"
