"""The checkpoint format on disk: file names, the latest complete checkpoint, integrity checks, retention.

A checkpoint is complete or absent: `writer.py` writes it into a hidden folder, hashes and flushes the files and
renames the folder; only then does `latest` name it. A crash at any moment leaves the previous `latest` valid.

`engine/` holds one file per rank: the rank's fp32 weights and AdamW moments, each fragment named by its parameter and its
offset in it (`zero_state.py`). That form is independent of the topology, so it loads into any number of ranks, any ZeRO stage
and any sequence parallelism, and bit for bit into the one that wrote it.
"""

import math
import shutil
from pathlib import Path

from ...evals.layout import checkpoint_folders, complete_checkpoints, is_of_average, result_files
from ...models.common.cached_files import read_json_if_whole
from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file
from ...models.common.run_layout import COMPLETE, ENGINE
from ..config import KeepBestSection, RunConfig
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
    """The state that the run began from, as a checkpoint older than all of its own; None with fresh weights."""
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
    """Delete what the retention rules do not keep: engine state of older checkpoints, or whole checkpoints.

    The newest `run.keep_checkpoints`, those of every `run.keep_every` steps, of `run.checkpoint_steps` and the best one
    (`run.keep_best`) stay resumable; of the newest `run.keep_models` the weights stay, for later evaluations. The newest checkpoint
    is never touched.
    """
    keep, models, every = config.run.keep_checkpoints, config.run.keep_models, config.run.keep_every
    checkpoints = list(complete_checkpoints(run.path))
    kept = {best_step(run, config.run.keep_best), *config.run.checkpoint_steps} | {
        record["step"] for _, record in checkpoints[-1:]
    }
    for age, (checkpoint, record) in enumerate(reversed(checkpoints), start=1):
        if record["step"] in kept or (every and record["step"] % every == 0):
            continue
        if models is not None and age > models:
            aside = checkpoint.with_name(f".removed.{checkpoint.name}")  # complete or absent
            checkpoint.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        elif keep is not None and age > keep:
            shutil.rmtree(checkpoint / ENGINE, ignore_errors=True)
    if keep is not None and checkpoints:
        shutil.rmtree(run.start / ENGINE, ignore_errors=True)  # the run has checkpoints of its own


def best_step(run: RunFolder, rule: KeepBestSection | None) -> int | None:
    """The step of the best checkpoint among those evaluated so far; None without a rule (`run.keep_best`) or a result."""
    if rule is None:
        return None
    values = {}
    for path in result_files(run.path):
        if is_of_average(path.stem):
            continue
        result = read_json_if_whole(path) or {}
        value = (result.get("metrics") or {}).get(rule.metric)
        if isinstance(value, int | float) and math.isfinite(value) and isinstance(result.get("step"), int):
            values[result["step"]] = value if rule.higher else -value
    return max(values, key=lambda step: values[step]) if values else None
