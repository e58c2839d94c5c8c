"""Checkpoints that are complete or absent.

A checkpoint is written into a hidden folder, its files are hashed and flushed, and the folder is renamed; only then does
`latest` name it. A crash at any moment leaves the previous `latest` valid.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..evals.run import complete_checkpoints
from ..models import save_pretrained
from ..models.errors import UserError
from ..models.files import read_json, sha256_file, sync_folder, write_json, write_text
from .config import RunConfig
from .run_folder import RunFolder


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates."""
    return f"step_{step:08d}"


def latest_checkpoint(run: RunFolder) -> Path | None:
    """The newest complete checkpoint, or None before the first.

    `latest` is written after the rename: a crash between the two leaves a newer complete folder, which counts.
    """
    found = list(complete_checkpoints(run.path))
    return found[-1][0] if found else None


def save_checkpoint(engine: Any, run: RunFolder, config: RunConfig, step: int, tokens: int) -> Path:
    """Write the checkpoint after `step` updates; called by every rank together.

    Raises:
        UserError: it does not fit on the disk; nothing that existed is touched.
    """
    final = run.checkpoints / checkpoint_name(step)
    if final.exists():  # written just before a crash that lost its event: the same bytes, by determinism
        return final
    partial = run.checkpoints / f".{final.name}.partial"
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        _require_space(run.checkpoints, engine)
        partial.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(partial), tag="engine", client_state={"step": step, "tokens": tokens}, save_latest=False)
    _save_weights(engine, partial / "model", run.data_folder() / "tokenizer.json")
    dist.barrier()
    if dist.get_rank() == 0:
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        for path in files:
            _flush(path)
        write_json(
            partial / "complete.json",
            {
                "step": step,
                "tokens": tokens,
                "workers": dist.get_world_size(),
                "zero_stage": config.run.zero_stage,
                "sha256": {str(path.relative_to(partial)): sha256_file(path) for path in files},
            },
        )
        os.rename(partial, final)
        sync_folder(run.checkpoints)
        write_text(run.latest_file, final.name + "\n")
        _retire(run, config.run.keep_checkpoints)
    dist.barrier()
    return final


def load_checkpoint(engine: Any, checkpoint: Path) -> tuple[int, int]:
    """Load weights and optimizer state; returns (step, tokens). Called by every rank after `check_checkpoint`."""
    loaded, client_state = engine.load_checkpoint(str(checkpoint), tag="engine")
    if loaded is None:
        raise UserError(f"{checkpoint} holds no engine state: delete that folder to resume from the one before it")
    return client_state["step"], client_state["tokens"]


def check_checkpoint(checkpoint: Path, config: RunConfig) -> None:
    """Check a checkpoint's files and topology before anything is loaded.

    Raises:
        UserError: a file is missing or damaged, or another world size or ZeRO stage wrote it.
    """
    record = read_json(checkpoint / "complete.json")
    for key, asked in (("workers", config.run.workers), ("zero_stage", config.run.zero_stage)):
        if record[key] != asked:
            raise UserError(
                f"{checkpoint} was written with run.{key}={record[key]}, this run has {asked}: "
                f"resume with run.{key}={record[key]}"
            )
    for name, expected in record["sha256"].items():
        path = checkpoint / name
        if not path.is_file() or sha256_file(path) != expected:
            raise UserError(
                f"{path} is missing or damaged (sha256 is not {expected[:12]}...): "
                f"delete {checkpoint} to resume from the checkpoint before it"
            )


def _save_weights(engine: Any, folder: Path, tokenizer: Path) -> None:
    """Consolidated safetensors under every ZeRO stage, beside the tokenizer that the weights were trained with."""
    from .quiet_deepspeed import deepspeed  # takes seconds; commands that only read checkpoints need not wait

    sharded = list(engine.module.parameters()) if engine.zero_optimization_stage() == 3 else []
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        if dist.get_rank() == 0:
            save_pretrained(engine.module, folder)
            shutil.copyfile(tokenizer, folder / tokenizer.name)


def _require_space(folder: Path, engine: Any) -> None:
    """Refuse to start a checkpoint that cannot fit: weights, their copy, and two moments in fp32."""
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    needed = parameters * 4 * 4
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no space for a checkpoint in {folder}: it needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
            "free some and run the same command again"
        )


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _retire(run: RunFolder, keep: int | None) -> None:
    """Delete the engine state of all but the newest `keep` checkpoints; weights stay, so that evaluations can follow."""
    for checkpoint, _ in list(complete_checkpoints(run.path))[: -keep if keep else 0]:
        shutil.rmtree(checkpoint / "engine", ignore_errors=True)
