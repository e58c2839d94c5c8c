"""The command `echo-lm checkpoint`, which makes a training run write a checkpoint at once."""

import time

from ...models.common.errors import UserError
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.reader import RunReader
from ...pipeline.run.stop_request import request_checkpoint
from ..monitor.state import HEARTBEAT_SILENT_SECONDS

POLL_SECONDS = 0.2


def checkpoint_run(run: RunFolder, timeout: float) -> int:
    """Ask a training run for a checkpoint and wait until it is complete; returns its step.

    Raises:
        UserError: the run is not training, it ended meanwhile without one, or `timeout` seconds passed.
    """
    run.load_config()
    reader = RunReader(run.path)
    before = reader.complete_steps()
    if not _trains(reader):
        newest = f"its newest checkpoint is that of step {before[-1][0]}" if before else "it has no checkpoint"
        raise UserError(f"{run.path} is not training now: {newest}")
    request_checkpoint(run)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        steps = reader.complete_steps()
        if steps and (not before or steps[-1] != before[-1]):
            return steps[-1][0]
        if not _trains(reader):
            raise UserError(f"{run.path} ended before it could write the checkpoint: see `echo-lm status {run.path}`")
        time.sleep(POLL_SECONDS)
    raise UserError(
        f"{run.path} wrote no checkpoint in {timeout:g} s: it comes after its step, which may take longer (--timeout)"
    )


def _trains(reader: RunReader) -> bool:
    """Whether the run is training: its ranks are alive, and it has neither finished nor stopped."""
    now = time.time()
    alive = any(now - beat < HEARTBEAT_SILENT_SECONDS for _, beat in reader.heartbeats())
    return alive and reader.stopped_at() is None
