"""The checkpoint format on disk: file names, the latest complete checkpoint, integrity checks, retention.

A checkpoint is complete or absent: `writer.py` writes it into a hidden folder, hashes and flushes the files and
renames the folder; only then does `latest` name it. A crash at any moment leaves the previous `latest` valid.

`engine/` holds one file per rank: the rank's fp32 weights and AdamW moments, each fragment named by its parameter and its
offset in it (`zero_state.py`). That form is independent of the topology, so it loads into any number of ranks, any ZeRO stage
and any sequence parallelism, and bit for bit into the one that wrote it.
"""

import shutil
from pathlib import Path

from ...evals.layout import checkpoint_folders, complete_checkpoints
from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file
from ...models.common.run_layout import COMPLETE, ENGINE
from ..config import RunConfig
from ..run.folder import RunFolder

FORMAT = 2  # of `engine/`


def piece_name(name: str, start: int, kind: str) -> str:
    """The key of a fragment in `engine/rank_*.safetensors`: parameter, offset and kind."""
    return f"{name}:{start}:{kind}"


def latest_checkpoint(run: RunFolder) -> Path | None:
    """The newest complete checkpoint, or None before the first.

    `latest` is written after the rename: a crash between the two leaves a newer complete folder, which counts.
    """
    checkpoints = list(complete_checkpoints(run.path))
    return checkpoints[-1][0] if checkpoints else None


def start_checkpoint(run: RunFolder) -> Path | None:
    """What the run began from, in the form of a checkpoint that is older than all of its own; None with fresh weights."""
    return run.start if (run.start / COMPLETE).is_file() else None


def check_checkpoint(checkpoint: Path) -> None:
    """Check a checkpoint's files before anything is loaded.

    Raises:
        UserError: a file is missing or damaged, or an earlier version of Echo-LM wrote it.
    """
    try:
        record = read_json(checkpoint / COMPLETE)
    except UserError as error:
        raise _damaged(checkpoint, f"is damaged: {checkpoint / COMPLETE} is missing or damaged") from error
    if record.get("format") != FORMAT:
        raise UserError(
            f"{checkpoint} was written by an earlier version of Echo-LM (format {record.get('format', 1)}, this one reads "
            f"{FORMAT}): go on with that version, or start a run under another name"
        )
    for name, expected in record["sha256"].items():
        path = checkpoint / name
        if not path.is_file() or sha256_file(path) != expected:
            fault = f"is damaged: {path} is missing or damaged (sha256 is not {expected[:12]}...)"
            if not (checkpoint / ENGINE).exists():
                fault = "holds weights only (see run.keep_checkpoints)"
            raise _damaged(checkpoint, fault)


def _damaged(checkpoint: Path, fault: str) -> UserError:
    return UserError(
        f"{checkpoint} {fault}: no older checkpoint is whole either; restore it, or start a run under another name"
    )


def set_damaged_aside(run: RunFolder) -> list[Path]:
    """Rename damaged checkpoints that are newer than the newest whole one, so that training goes on from that.

    Returns:
        the new paths of the damaged ones.

    Raises:
        UserError: there are checkpoints, but none is whole, nor is what the run began from; nothing is renamed.
    """
    damaged, first_problem = [], None
    start = start_checkpoint(run)
    for checkpoint in [*reversed(checkpoint_folders(run.path)), *([start] if start else [])]:
        try:
            check_checkpoint(checkpoint)
            break
        except UserError as problem:
            first_problem = first_problem or problem
            damaged.append(checkpoint)
    else:
        if first_problem is not None:
            raise first_problem
    aside = [checkpoint.with_name(f".damaged.{checkpoint.name}") for checkpoint in damaged]
    for checkpoint, path in zip(damaged, aside, strict=True):
        shutil.rmtree(path, ignore_errors=True)
        checkpoint.rename(path)
    return aside


def apply_retention(run: RunFolder, config: RunConfig) -> None:
    """Delete the engine state of checkpoints beyond the retention rule; their weights stay, for later evaluations.

    The newest `run.keep_checkpoints` and those of every `run.keep_every` steps stay resumable; the newest always does.
    """
    keep, every = config.run.keep_checkpoints, config.run.keep_every
    if keep is None:
        return
    for checkpoint, record in list(complete_checkpoints(run.path))[:-keep]:
        if not every or record["step"] % every:
            shutil.rmtree(checkpoint / ENGINE, ignore_errors=True)
    shutil.rmtree(run.start / ENGINE, ignore_errors=True)  # the run has checkpoints of its own
