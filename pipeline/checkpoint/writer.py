"""Writing checkpoints in the background, while training goes on.

Training stalls while every rank copies its fragments to CPU memory; a thread of each rank then writes the copy during the next
steps. The threads communicate through files, not collectives: each writes a record with the hashes of its files, and rank 0's
thread waits for all records before it completes the checkpoint. A rank without the memory for a copy writes at once.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from ...data_prep.preparing.tokenizer import FILE_NAME, copy_tokenizer
from ...models import save_pretrained
from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file, sync_folder, write_aside, write_json, write_text
from ...models.common.run_layout import COMPLETE, EMA, ENGINE, MODEL, checkpoint_name
from ..agreement import raise_together
from ..config import RunConfig
from ..engine.quiet_deepspeed import gathered
from ..run.folder import RunFolder
from .format import FORMAT, apply_retention, piece_name
from .moving_average import MovingAverage, whole_average
from .zero_state import fragments, optimizer_steps

MEMORY_SHARE = 0.5  # share of a node's free memory that the copies of all its ranks may take
POLL_SECONDS = 0.02


class CheckpointRecord(NamedTuple):
    """A completed checkpoint: `seconds` from start to completion, of which training waited `stall_seconds`."""

    step: int
    path: Path
    seconds: float
    stall_seconds: float


def rank_record_path(partial: Path, rank: int) -> Path:
    """The file in which a rank records that its part of a checkpoint is written."""
    return partial / f"rank_{rank:05d}.json"


def write_rank_record(partial: Path, rank: int, hashes: dict[str, str]) -> None:
    """Record that a rank's part is written, with the hashes of its files.

    The rank must not touch the folder afterwards: rank 0 completes and renames it.
    """
    with write_aside(rank_record_path(partial, rank), flush_folder=False) as aside:
        aside.write_text(json.dumps(hashes), encoding="utf-8")


class CheckpointWriter:
    """Writes checkpoints of an engine, one at a time. `begin` and `finish` are called by every rank together."""

    def __init__(
        self,
        engine: Any,
        run: RunFolder,
        config: RunConfig,
        *,
        step: int,
        average: MovingAverage | None = None,
        replaced: Callable[[], bool] = lambda: False,
    ):
        """Prepare to write checkpoints of an engine; nothing is written yet.

        Args:
            step: of the checkpoint that the engine was loaded from, 0 at the start.
            average: is written too, for resuming into `engine/`, and as a model of its own into `ema/`.
            replaced: returns whether another worker group has taken over the run; then no checkpoint is completed any more.
        """
        self._engine, self._run, self._config = engine, run, config
        self.average, self._replaced = average, replaced
        self._thread: threading.Thread | None = None
        self._rank_written, self._abandoned = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._completed: CheckpointRecord | None = None
        self._latest_step = step

    def begin(self, step: int, tokens: int) -> None:
        """Start to write the state after `step` updates; waits for the previous checkpoint first.

        Raises:
            UserError: it does not fit on the disk, or the previous one could not be written; existing checkpoints are untouched.
        """
        self.finish()
        if step == self._latest_step:
            return
        started = time.perf_counter()
        final = self._run.checkpoints / checkpoint_name(step)
        partial = self._run.checkpoints / f".{final.name}.partial"
        error = None
        if dist.get_rank() == 0:
            try:
                self._make_partial_folder(partial)
            except (OSError, UserError) as problem:
                error = problem
        raise_together(error, self._engine.device)
        state = {"step": step, "tokens": tokens, "optimizer_steps": optimizer_steps(self._engine)}
        in_background = self._config.run.checkpoint_beside_training and self._fits_in_memory()
        pieces = self._pieces(copy=in_background)
        weights = self._weights()

        def write() -> None:
            try:
                self._write_rank(partial, pieces, weights, state)
                self._rank_written.set()
                if dist.get_rank() == 0 and self._complete(partial, final, state):
                    now = time.perf_counter()
                    self._completed = CheckpointRecord(
                        step, final, now - started, stalled if in_background else now - started
                    )
            except Exception as problem:  # raised by `finish`, on every rank
                self._error = problem
                self._rank_written.set()

        self._rank_written.clear()
        self._abandoned.clear()
        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        stalled = time.perf_counter() - started
        self._thread.start()
        if not in_background:
            self._rank_written.wait()
        if not self._config.run.checkpoint_beside_training:
            self.finish()
        self._latest_step = step

    def failed(self) -> bool:
        """Whether this rank knows that the current write failed; `finish` raises it."""
        return self._error is not None

    def completed(self) -> CheckpointRecord | None:
        """The checkpoint that became complete since the last call, on rank 0; else None."""
        completed, self._completed = self._completed, None
        return completed

    def finish(self) -> None:
        """Wait until the checkpoint being written is complete.

        Raises:
            UserError: on every rank, if any rank could not write.
        """
        if self._thread is None:
            return
        self._rank_written.wait()
        try:
            raise_together(self._error, self._engine.device)
        except UserError:
            self._abandoned.set()  # rank 0's thread may be waiting for a record that will never be written
            raise
        self._thread.join()
        self._thread = None
        raise_together(self._error, self._engine.device)

    def _make_partial_folder(self, partial: Path) -> None:
        """Create the empty folder of a partial checkpoint, on a disk with enough free space."""
        for leftover in partial.parent.glob(".*.partial"):  # of a crash
            shutil.rmtree(leftover)
        partial.parent.mkdir(parents=True, exist_ok=True)
        module = self._engine.module
        copies = 6 if self.average else 4
        needed = sum(4 * copies * getattr(p, "ds_numel", p.numel()) for p in module.parameters())
        free = shutil.disk_usage(partial.parent).free
        if free < needed:
            raise UserError(
                f"no space for a checkpoint in {partial.parent}: it needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are "
                "free; free some and run the same command again"
            )
        (partial / ENGINE).mkdir(parents=True)

    def _fits_in_memory(self) -> bool:
        size = sum(t.numel() * 4 for fragment in fragments(self._engine) for t in fragment.tensors.values())
        size += size // 3 if self.average else 0
        return size * self._ranks_here() < MEMORY_SHARE * psutil.virtual_memory().available

    @staticmethod
    def _ranks_here() -> int:
        return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))

    def _pieces(self, *, copy: bool) -> dict[str, Tensor]:
        """The fragments that this rank writes, in CPU memory. Under ZeRO-0 all ranks hold the same: only rank 0 writes."""
        if self._engine.zero_optimization_stage() == 0 and dist.get_rank() > 0:
            return {}
        pieces = {
            piece_name(fragment.name, fragment.start, kind): tensor.detach().to("cpu", copy=copy)
            for fragment in fragments(self._engine)
            for kind, tensor in fragment.tensors.items()
        }
        return pieces | (self.average.pieces(copy=copy) if self.average else {})

    def _weights(self) -> dict[str, Tensor]:
        """The model's weights, gathered one parameter at a time into CPU memory of rank 0; empty on other ranks."""
        weights = {}
        for name, parameter in self._engine.module.named_parameters():
            with gathered(self._engine, [parameter]):
                if dist.get_rank() == 0:
                    weights[name] = parameter.detach().to("cpu", copy=True)
        return weights

    def _write_rank(self, partial: Path, pieces: dict[str, Tensor], weights: dict[str, Tensor], state: dict) -> None:
        """Write this rank's fragments, on rank 0 also the weights and the state; then the record that rank 0's thread waits for."""
        rank = dist.get_rank()
        try:
            files = [partial / ENGINE / f"rank_{rank:05d}.safetensors"]
            save_file(pieces, files[0])
            if rank == 0:
                model = partial / MODEL
                save_pretrained(self._engine.module, model, state_dict=weights)
                copy_tokenizer(self._run.data_folder() / FILE_NAME, model)
                write_json(partial / ENGINE / "state.json", state)
                files += [*model.iterdir(), partial / ENGINE / "state.json"]
            for path in files:
                _flush(path)
            hashes = {str(path.relative_to(partial)): sha256_file(path) for path in files}
        except Exception as problem:
            raise UserError(
                f"{partial} could not be written ({problem}): the checkpoint before it is kept; "
                "mend that (free space?) and run the same command again"
            ) from problem
        write_rank_record(partial, rank, hashes)

    def _complete(self, partial: Path, final: Path, state: dict) -> bool:
        """Wait for all ranks' records, then complete the checkpoint; False if a rank failed."""
        hashes = {}
        for rank in range(dist.get_world_size()):
            record = rank_record_path(partial, rank)
            while not record.is_file():
                if self._abandoned.wait(POLL_SECONDS):
                    return False
            hashes |= read_json(record)
            record.unlink()
        if self.average:
            hashes |= self._write_average(partial)
        run = self._config.run
        topology = {"workers": dist.get_world_size(), "zero_stage": run.zero_stage}
        topology |= {"sequence_parallel": run.sequence_parallel}
        steps = {"step": state["step"], "tokens": state["tokens"]}
        if self._replaced():
            return False
        write_json(partial / COMPLETE, {"format": FORMAT} | steps | topology | {"sha256": hashes})
        os.rename(partial, final)
        sync_folder(self._run.checkpoints)
        write_text(self._run.latest_file, final.name + "\n")
        apply_retention(self._run, self._config)
        return True

    def _write_average(self, partial: Path) -> dict[str, str]:
        """Write the moving average as a model, from the fragments of all ranks; returns the hashes of its files."""
        module, folder = self._engine.module, partial / EMA
        shapes = {name: getattr(p, "ds_shape", p.shape) for name, p in module.named_parameters()}
        save_pretrained(module, folder, state_dict=whole_average(partial / ENGINE, shapes))
        shutil.copyfile(partial / MODEL / "tokenizer.json", folder / "tokenizer.json")
        for path in folder.iterdir():
            _flush(path)
        return {str(path.relative_to(partial)): sha256_file(path) for path in folder.iterdir()}


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
