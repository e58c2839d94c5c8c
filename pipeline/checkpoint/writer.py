"""Writing checkpoints beside the training.

Training stands still while every rank copies what it keeps to CPU memory; a thread of each rank then writes its copy while
the next steps train. The threads talk through files, not collectives: each leaves a record of what it wrote, and rank 0's
waits for all records before it makes the checkpoint complete. A rank that lacks the memory for a copy writes at once.
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

from ...models import save_pretrained
from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file, sync_folder, write_aside, write_json, write_text
from ...models.common.run_layout import COMPLETE, ENGINE, MODEL, checkpoint_name
from ..agreement import raise_together
from ..config import RunConfig
from ..quiet_deepspeed import gathered
from ..run.folder import RunFolder
from .format import FORMAT, piece_name, retire
from .zero_state import fragments, optimizer_steps

MEMORY_SHARE = 0.5  # of what is free may be taken for a copy
POLL_SECONDS = 0.02


class CheckpointRecord(NamedTuple):
    """A checkpoint that became complete: `seconds` it took, in `stall_seconds` of which training stood still."""

    step: int
    path: Path
    seconds: float
    stall_seconds: float


def record_of(partial: Path, rank: int) -> Path:
    """Where a rank says that its part is written."""
    return partial / f"rank_{rank:05d}.json"


def leave_record(partial: Path, rank: int, hashes: dict[str, str]) -> None:
    """Say that a rank's part is written. Nothing may touch the folder after that: rank 0 completes it, under its final name."""
    with write_aside(record_of(partial, rank), flush_folder=False) as aside:
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
        replaced: Callable[[], bool] = lambda: False,
    ):
        """
        Args:
            step: that of the checkpoint that the engine holds already, 0 at the start.
            replaced: whether another worker group trains the run by now: then nothing is made complete any more.
        """
        self._engine, self._run, self._config = engine, run, config
        self._replaced = replaced
        self._thread: threading.Thread | None = None
        self._rank_written, self._given_up = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._completed: CheckpointRecord | None = None
        self._latest_step = step

    def begin(self, step: int, tokens: int) -> None:
        """Take the state after `step` updates and start to write it; waits for the one before.

        Raises:
            UserError: it does not fit on the disk, or the one before could not be written; what existed is untouched.
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
                self._make_room(partial)
            except (OSError, UserError) as problem:
                error = problem
        raise_together(error, self._engine.device)
        state = {"step": step, "tokens": tokens, "optimizer_steps": optimizer_steps(self._engine)}
        beside = self._config.run.checkpoint_beside_training and self._fits_in_memory()
        pieces = self._pieces(copy=beside)
        weights = self._weights()

        def write() -> None:
            try:
                self._write_rank(partial, pieces, weights, state)
                self._rank_written.set()
                if dist.get_rank() == 0 and self._complete(partial, final, state):
                    now = time.perf_counter()
                    self._completed = CheckpointRecord(step, final, now - started, stalled if beside else now - started)
            except Exception as problem:  # raised by `finish`, on every rank
                self._error = problem
                self._rank_written.set()

        self._rank_written.clear()
        self._given_up.clear()
        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        stalled = time.perf_counter() - started
        self._thread.start()
        if not beside:
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
            self._given_up.set()  # rank 0's thread may wait for a record that never comes
            raise
        self._thread.join()
        self._thread = None
        raise_together(self._error, self._engine.device)

    def _make_room(self, partial: Path) -> None:
        """An empty folder to write to, on a disk that has the space."""
        for leftover in partial.parent.glob(".*.partial"):  # of a crash
            shutil.rmtree(leftover)
        partial.parent.mkdir(parents=True, exist_ok=True)
        module = self._engine.module
        needed = sum(4 * 4 * getattr(p, "ds_numel", p.numel()) for p in module.parameters())
        free = shutil.disk_usage(partial.parent).free
        if free < needed:
            raise UserError(
                f"no space for a checkpoint in {partial.parent}: it needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are "
                "free; free some and run the same command again"
            )
        (partial / ENGINE).mkdir(parents=True)

    def _fits_in_memory(self) -> bool:
        size = sum(t.numel() * 4 for fragment in fragments(self._engine) for t in fragment.tensors.values())
        return size * self._ranks_here() < MEMORY_SHARE * psutil.virtual_memory().available

    @staticmethod
    def _ranks_here() -> int:
        return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))

    def _pieces(self, *, copy: bool) -> dict[str, Tensor]:
        """What this rank writes. ZeRO-0 keeps the same on every rank: rank 0 writes it."""
        if self._engine.zero_optimization_stage() == 0 and dist.get_rank() > 0:
            return {}
        return {
            piece_name(fragment.name, fragment.start, kind): tensor.detach().to("cpu", copy=copy)
            for fragment in fragments(self._engine)
            for kind, tensor in fragment.tensors.items()
        }

    def _weights(self) -> dict[str, Tensor]:
        """The model's weights in CPU memory of rank 0, gathered one parameter at a time; elsewhere nothing."""
        weights = {}
        for name, parameter in self._engine.module.named_parameters():
            with gathered(self._engine, [parameter]):
                if dist.get_rank() == 0:
                    weights[name] = parameter.detach().to("cpu", copy=True)
        return weights

    def _write_rank(self, partial: Path, pieces: dict[str, Tensor], weights: dict[str, Tensor], state: dict) -> None:
        """This rank's file, on rank 0 the weights and the state too; then the record that rank 0's thread waits for."""
        rank = dist.get_rank()
        try:
            files = [partial / ENGINE / f"rank_{rank:05d}.safetensors"]
            save_file(pieces, files[0])
            if rank == 0:
                model = partial / MODEL
                save_pretrained(self._engine.module, model, state_dict=weights)
                tokenizer = self._run.data_folder() / "tokenizer.json"
                shutil.copyfile(tokenizer, model / tokenizer.name)
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
        leave_record(partial, rank, hashes)

    def _complete(self, partial: Path, final: Path, state: dict) -> bool:
        """Wait for all ranks' records, then make the checkpoint complete; False if a rank failed."""
        hashes = {}
        for rank in range(dist.get_world_size()):
            record = record_of(partial, rank)
            while not record.is_file():
                if self._given_up.wait(POLL_SECONDS):
                    return False
            hashes |= read_json(record)
            record.unlink()
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
        retire(self._run, self._config)
        return True


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
