"""The state from which training resumes: the newest checkpoint, else the checkpoint that the run began from, else fresh weights."""

from pathlib import Path
from typing import Any, NamedTuple

from ...models.common.files import read_json
from ...models.common.run_layout import COMPLETE, MODEL
from ..run.folder import RunFolder
from ..run.lineage import read_lineage
from .format import latest_checkpoint, start_checkpoint
from .reader import load_checkpoint, load_weights


class SavedState(NamedTuple):
    """A saved training state: `checkpoint` is None for fresh weights; with `weights_only` the optimizer begins anew."""

    checkpoint: Path | None
    step: int
    tokens: int
    weights_only: bool = False

    def load(self, engine: Any) -> None:
        """Load the state into an engine of any topology; called by every rank after the files were checked.

        Raises:
            UserError: it lacks a parameter, or a part of one.
        """
        if self.checkpoint is None:
            return
        if self.weights_only:
            load_weights(engine, self.checkpoint / MODEL)
        else:
            load_checkpoint(engine, self.checkpoint)


def newest_state(run: RunFolder) -> SavedState:
    """The newest saved state of a run, from which training resumes.

    Raises:
        UserError: a record is damaged.
    """
    checkpoint = latest_checkpoint(run)
    weights_only = False
    if checkpoint is None:
        checkpoint = start_checkpoint(run)
        if checkpoint is None:
            return SavedState(None, 0, 0)
        lineage = read_lineage(run.path)
        weights_only = bool(lineage and lineage.parent and lineage.parent.what == "weights")
    record = read_json(checkpoint / COMPLETE)
    return SavedState(checkpoint, record["step"], record["tokens"], weights_only)
