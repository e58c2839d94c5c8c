"""The training loop of one rank, which reads configuration, data and checkpoint from the run folder and writes events and
checkpoints."""

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..data_prep.loading.dataset import Dataset
from ..data_prep.loading.loader import BatchLoader
from ..models.common.errors import UserError
from ..models.common.files import write_json
from ..models.common.run_layout import ENGINE
from .agreement import raise_together
from .batches import Prefetcher, Stage, loader_of_segments, stages_of
from .checkpoint.format import set_damaged_aside
from .checkpoint.moving_average import MovingAverage
from .checkpoint.restore import SavedState, newest_state
from .checkpoint.writer import CheckpointWriter
from .compilation.beside import KernelCompilation
from .compilation.waiting import AwaitedKernels
from .config import RunConfig
from .engine import build_engine, choose_device, join_process_group
from .engine.cuda_graphs import graphed_blocks, why_not
from .garbage import GarbageCollection
from .mesh import Mesh, make_mesh, nodes_of_ranks
from .monitoring.heartbeat import Heartbeat
from .monitoring.machine import MachineMeter
from .monitoring.metrics import Meter
from .monitoring.ska_health import SKAHealthMonitor
from .monitoring.startup import StartupClock
from .monitoring.straggler import Stopwatch, StragglerDetector
from .run.events import EventLog
from .run.folder import RunFolder, describe_environment
from .run.lineage import segments_of
from .run.stop_request import stop_reason
from .schedule import gate_penalty_at, learning_rate_at
from .stop_signal import StopSignal
from .update import Update, update


def train(run_path: Path | str, compilation: KernelCompilation | None = None) -> None:
    """Train the run in `run_path` from its last complete checkpoint to its end, as the rank that the environment names.

    Args:
        compilation: what compiles the run's kernels meanwhile; launches wait for it.

    Raises:
        UserError: also recorded in the run's `error.json`, since this may be a process of a worker group.
    """
    run, clock = RunFolder(run_path), StartupClock()
    clock.end("imports")
    with StopSignal(later_ends=False) as stop:
        try:
            _train(run, run.load_config(), stop, clock, compilation)
        except UserError as error:
            write_json(run.error_file, {"message": str(error)})
            raise


def _train(
    run: RunFolder, config: RunConfig, stop: StopSignal, clock: StartupClock, compilation: KernelCompilation | None
) -> None:
    torch.set_num_threads(config.run.threads)
    device = choose_device(config)
    join_process_group(device)
    clock.end("process_group")
    with Heartbeat(run, dist.get_rank(), dist.get_world_size()) as heartbeat:
        nodes = nodes_of_ranks()
        mesh = make_mesh(config.run.sequence_parallel, nodes)
        dataset = Dataset.open(run.data_folder())
        vocab_size = dataset.tokenizer().get_vocab_size()
        stages = _stages(run, config)
        clock.end("data")
        going_on, same_process, kernels = True, False, None
        while going_on:
            # One stage, unless training fell back behind its beginning.
            state = _resume(run, device)
            number = max(index for index, stage in enumerate(stages) if stage.step <= state.step)
            end = stages[number + 1].step if number + 1 < len(stages) else None
            engine = build_engine(stages[number].config, vocab_size, device, mesh)
            clock.end("engine")  # of the first stage; later ones are not part of the start
            loader = loader_of_segments(dataset, [(stage.step, stage.config) for stage in stages[: number + 1]])
            loop = _Loop(run, stages[number], engine, mesh, loader, dataset, heartbeat, nodes, state, end, same_process)
            if not same_process:
                clock.end("state")
                loop.clock = clock
                waiting = {"step": loop.step, "on_gpu": device.type == "cuda"}
                kernels = AwaitedKernels(run.path, compilation, loop.record_event, stop, **waiting)
            loop.kernels = kernels
            going_on, same_process = loop.train_to_end(stop), True
            dist.barrier()  # a rank that exits earlier can make the others fail while they exit
            engine.destroy()
            del loop, engine  # otherwise two engines would be in memory at once
    dist.destroy_process_group()


def _stages(run: RunFolder, config: RunConfig) -> list[Stage]:
    """The stages of the run; `config` is the configuration of the last segment, and says how all are executed."""
    *earlier, last = segments_of(run.path, config)
    return stages_of([*((part.step, part.run_config(config)) for part in earlier), (last.step, config)])


def _resume(run: RunFolder, device: torch.device) -> SavedState:
    """The newest state that is whole; damaged checkpoints after it are set aside. Called by every rank."""
    error = None
    if dist.get_rank() == 0:  # hashes every file: one rank is enough
        try:
            set_damaged_aside(run)
        except (OSError, UserError) as problem:
            error = problem
    raise_together(error, device)
    return newest_state(run)


class _Loop:
    """Training steps with checkpoints; all ranks take every decision together."""

    def __init__(
        self,
        run: RunFolder,
        stage: Stage,
        engine: Any,
        mesh: Mesh,
        loader: BatchLoader,
        dataset: Dataset,
        heartbeat: Heartbeat,
        nodes: list[str],
        state: SavedState,
        end: int | None,
        same_process: bool,
    ):
        """Begin one stage of training: load the state into the engine and record the start.

        Args:
            state: is loaded into the engine.
            end: the step at which the next stage begins; None if it is the last.
            same_process: whether this process has trained the stage before.
        """
        config = stage.config
        self.run, self.config, self.engine, self.mesh, self.loader = run, config, engine, mesh, loader
        self.heartbeat, self.nodes = heartbeat, nodes
        self.compute_timer, self.stragglers = Stopwatch(engine.device), StragglerDetector(config.run.straggler_factor)
        self.begin, self.end, self.hyperparameters = stage.step, end, stage.train
        self._load(state)
        self.writer = CheckpointWriter(
            engine, run, config, step=self.step, average=self.average, replaced=heartbeat.replaced
        )
        self.meter = Meter(config, dataset, loader, engine.device, mesh.world)
        self.machine = MachineMeter(engine.device)
        self.health = SKAHealthMonitor(engine, config)
        self.graphed = graphed_blocks(engine.module)
        self.log = EventLog(run.events_file) if mesh.rank == 0 else None
        self.kernels: AwaitedKernels | None = None
        self.clock: StartupClock | None = None  # until the first step of this process
        if self.log:  # the environment is that of rank 0
            fields = self._position() | {"pid": os.getpid(), "same_process": same_process} | self._topology()
            self.record_event("start", **fields, **describe_environment())
        for path in sorted(self.run.checkpoints.glob(".damaged.*")):
            message = f"a checkpoint was damaged and is set aside as {path}: training goes on from one before"
            self.record_event("warning", step=self.step, message=message)
        self._nonfinite_steps = 0  # consecutive steps with a gradient that is not finite
        self._rolled_back_at = 0
        self._saved_at = time.monotonic()

    def train_to_end(self, stop: StopSignal) -> bool:
        """Train to the end of the stage or a stop; returns whether another stage follows now."""
        config = self.config
        last = self.end if self.end is not None else config.train.steps
        last = min(last, config.run.stop_step or last)
        stopping, compute_seconds = False, 0.0
        with (
            GarbageCollection() as garbage,
            Prefetcher(self.loader.batch, last, depth=config.run.prefetch) as batches,
        ):
            while self.step < last and not stopping:
                started = time.perf_counter()
                batch, stall = batches.batch(self.step)
                rate = learning_rate_at(self.step, self.hyperparameters)
                flags = [
                    stop.received or bool(self.heartbeat.stop_reason),
                    self.writer.failed(),
                    self._checkpoint_due(),
                ]
                self.compute_timer.start()
                result = update(
                    self.engine,
                    batch,
                    rate,
                    config,
                    self.mesh,
                    flags=flags,
                    gate_penalty=gate_penalty_at(self.step, config.train),
                    compute_seconds=compute_seconds,
                    compute_timer=self.compute_timer,
                )
                garbage.collect()
                compute_seconds = stall + self.compute_timer.seconds()  # shared with the other ranks in the next step
                self.step, self.tokens = self.step + 1, self.tokens + config.train.batch_tokens
                self.heartbeat.record_step(self.step)
                self._record(result, time.perf_counter() - started, stall)
                if self.health.due(self.step):
                    for kind, fields in self.health.measure(batch, self.mesh, self.step):
                        self.record_event(kind, step=self.step, **fields)
                stopping, write_failed = bool(result.flags[0]), bool(result.flags[1])
                if write_failed:
                    self.writer.finish()  # raises on every rank
                if not result.applied:
                    self._nonfinite_steps += 1
                    if self._nonfinite_steps >= config.run.rollback_after:
                        self._roll_back()
                    continue  # no checkpoint of a state that may be broken
                self._nonfinite_steps = 0
                if self.average:
                    self.average.update(self.step)
                if self.step < last and (self._checkpoint_planned() or result.flags[2]):
                    self.writer.begin(self.step, self.tokens)
                    self._saved_at = time.monotonic()
                self._report_checkpoints()
            self.writer.begin(self.step, self.tokens)
            self.writer.finish()
            self._report_checkpoints()
        if self.step == self.end and not stopping and self.step != config.run.stop_step:
            return True
        if self.end is None and self.step == config.train.steps:
            self.record_event("finish", **self._position())
            if self.log:
                write_json(self.run.finished_file, self._position())
        else:
            reason = stop.reason or stop_reason(self.run)  # another rank may have read it before this one's heartbeat
            reason = (reason or "a signal to another rank") if stopping else "run.stop_step"
            self.record_event("stop", **self._position(), reason=reason)
        return False

    def _load(self, state: SavedState) -> None:
        """Load a state into the engine, and the moving average of the weights that belongs to it."""
        state.load(self.engine)
        self.step, self.tokens = state.step, state.tokens
        decay, folder = self.config.train.ema_decay, None
        if state.checkpoint is not None and not state.weights_only:
            folder = state.checkpoint / ENGINE
        self.average = None if decay is None else MovingAverage(self.engine, decay, folder)

    def _checkpoint_planned(self) -> bool:
        run = self.config.run
        return self.step % run.checkpoint_every == 0 or self.step in run.checkpoint_steps

    def _checkpoint_due(self) -> bool:
        """Whether a checkpoint was asked for, or the last one is `run.checkpoint_minutes` old; rank 0 decides for all."""
        if self.mesh.rank > 0:
            return False
        minutes = self.config.run.checkpoint_minutes
        old = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return self.heartbeat.checkpoint_requested() or old

    def _roll_back(self) -> None:
        """Return to the last complete checkpoint, once: a second failure at the same steps is raised.

        Raises:
            UserError: the gradients are not finite again where they were not before.
        """
        self.writer.finish()
        failed = self.step
        count, self._nonfinite_steps = self._nonfinite_steps, 0
        if failed <= self._rolled_back_at or newest_state(self.run).checkpoint is None:
            again = (
                " again, after going back"
                if failed <= self._rolled_back_at
                else ", and there is no checkpoint to go back to"
            )
            raise UserError(
                f"the gradients of {self.run.path} are not finite at steps {failed - count + 1} to {failed}{again}: "
                "lower train.learning_rate and start again under another name"
            )
        self._rolled_back_at = failed
        state = _resume(self.run, self.engine.device)
        if state.step < self.begin:
            raise UserError(
                f"{self.run.path}: the gradients are not finite, and the checkpoints since the change at step "
                f"{self.begin} are damaged: the same command goes on from step {state.step}"
            )
        self._load(state)
        self.writer.average = self.average
        self.record_event(
            "rollback", **self._position(), from_step=failed, reason=f"{count} steps in a row were not finite"
        )

    def _record(self, result: Update, seconds: float, stall: float) -> None:
        if not self.log:
            return
        if not result.applied:
            self.record_event("skip", step=self.step, reason="the gradient was not finite: no weight was changed")
        measured = self.meter.measure(result.metrics, seconds)
        fields = (
            result.metrics | measured | {"data_stall_seconds": stall, "epochs": self.loader.epochs_before(self.step)}
        )
        if result.loss_by_source:
            fields["loss_by_source"] = dict(result.loss_by_source)
        self.record_event("step", **self._position(), **fields, **self.machine.measure())
        for rank, slow, median in self.stragglers.record_step(result.compute_seconds, seconds):
            node = self.nodes[rank]
            message = f"rank {rank} on {node} computes {slow:.3g} s a step, the median rank {median:.3g} s"
            fields = {"rank": rank, "node": node, "seconds": slow, "median_seconds": median, "message": message}
            self.record_event("straggler", step=self.step, **fields)
        if self.kernels:
            self.kernels.record(self.step)
        if self.clock:
            self.record_event(
                "startup", step=self.step, **self.clock.finish(self.kernels.waited if self.kernels else 0.0)
            )
            self.clock = None
        reason = self.graphed.take_eager_reason() if self.graphed else None
        if reason:
            self.record_event("warning", step=self.step, message=f"passes without CUDA graphs: {reason}")

    def _report_checkpoints(self) -> None:
        completed = self.writer.completed()
        if completed:
            self.record_event(
                "checkpoint",
                step=completed.step,
                path=completed.path.name,
                seconds=completed.seconds,
                stall_seconds=completed.stall_seconds,
            )

    def _position(self) -> dict[str, int]:
        return {"step": self.step, "tokens": self.tokens}

    def _topology(self) -> dict[str, Any]:
        run = self.config.run
        return {
            "world_size": self.mesh.world,
            "zero_stage": run.zero_stage,
            "sequence_parallel": run.sequence_parallel,
            "device": str(self.engine.device),
            "cuda_graphs": why_not(self.config, self.engine.device) or "blocks",
            "nodes": self.nodes,
        }

    def record_event(self, kind: str, **fields: Any) -> None:
        """Record an event, on rank 0."""
        if self.log:
            self.log.write(kind, **fields)
