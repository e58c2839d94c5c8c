"""Progress of a training run from its events, independent of the launcher."""

import threading
from contextlib import ExitStack

from ...pipeline.config import RunConfig
from ...pipeline.run.events import EventReader
from ...pipeline.run.folder import RunFolder
from .bars import Stage, stage


class TrainingProgress:
    """Shows the progress of a run from `events.jsonl`. Use as a context; call `update`, or `follow` to update from a thread."""

    def __init__(self, run: RunFolder, config: RunConfig):
        self._last = min(config.train.steps, config.run.stop_step or config.train.steps)
        self._events = EventReader.of_run(run.path)
        self._events.read()  # skips the events of earlier attempts
        self._stack = ExitStack()
        self._stage: Stage | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        if self._thread:
            self._thread.join()
            self.update()
        self._stack.close()

    def follow(self, seconds: float = 1.0) -> None:
        """Update from a thread until the context ends."""

        def loop() -> None:
            while not self._stopped.wait(seconds):
                self.update()

        self._thread = threading.Thread(target=loop, daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Read the new events and show the current step."""
        for event in self._events.read():
            if event["kind"] == "start":
                self._show(event["step"], f"started on {event['world_size']} worker(s), {event['device']}")
            elif event["kind"] == "compile" and "done" in event:
                self._show(
                    event["step"], f"kernels: {event['done']} of {event['kernels']}, {event['compiled']} compiled"
                )
            elif event["kind"] == "startup":
                slowest = max(event["phases"], key=event["phases"].__getitem__)
                note = (
                    f"first step after {event['total_seconds']:.0f} s, {event['phases'][slowest]:.0f} s of it {slowest}"
                )
                self._show(event["step"], note)
            elif event["kind"] == "step":
                loss = "not finite" if event["loss"] is None else f"{event['loss']:.3f}"
                self._show(event["step"], f"loss {loss}, {event['tokens_per_second']:,.0f} tokens/s")

    def _show(self, step: int, note: str) -> None:
        if self._stage is None:
            self._stage = self._stack.enter_context(stage("train", self._last, "steps", done=step))
        self._stage.update(step, note)
