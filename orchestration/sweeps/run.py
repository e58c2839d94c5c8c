"""`echo-lm sweep run`: train and evaluate every run of recall sweeps that has no result; a later start goes on."""

import math
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

from ...evals.sweeps.config import load_sweep
from ...evals.sweeps.report import write_report
from ...evals.sweeps.result_files import SweepFolder
from ...evals.sweeps.runs import evaluated_tokens
from ...models.common.errors import UserError
from ...pipeline.stop_signal import StopSignal
from ..jobs.archive import check_archive
from ..jobs.cluster import ray_cluster
from ..jobs.executors import Executor, ProcessExecutor
from ..jobs.job import Job, Resources
from ..jobs.ray_executor import RayExecutor
from ..jobs.scheduler import Scheduler
from ..progress.bars import console, stage
from .archive import pack
from .group import GroupJob
from .queue import SweepQueue


def run_sweeps(
    names: Sequence[str],
    sweeps: Path,
    *,
    arms: Collection[str] = (),
    device: str | None = None,
    workers: int | None = None,
    together: int | None = None,
    seconds: float | None = None,
    archive: Path | None = None,
    use_ray: bool = False,
    address: str | None = None,
) -> None:
    """Run every missing run of the sweeps, and write the report of each one that is complete.

    Args:
        names: of sweeps of the package, or YAML files; the runs of the first come first.
        sweeps: folder of the results.
        arms: only these; each must be an arm of one of the sweeps.
        device: "cuda" or "cpu"; GPUs if there are any, if None.
        workers: processes on each GPU, 2 if None, or on the CPU, 1 if None.
        together: runs that train side by side in a process; each sweep's own number on a GPU, 1 on the CPU, if None.
        seconds: start no group that would end later from now, going by the longest so far; stop what runs then.
        archive: file that gets all results after every group (see `archive.pack`).
        use_ray: run the groups as tasks of a Ray cluster, the one at `address` or one of its own.

    Raises:
        UserError: bad input, found before anything runs; or groups that failed, when all others are done.
    """
    import torch

    until = math.inf if seconds is None else time.monotonic() + seconds
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cuda", "cpu"):
        raise UserError(f"--device {device}: it is cuda or cpu")
    gpus = device == "cuda"
    workers = workers or (2 if gpus else 1)
    if gpus and not use_ray and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no GPU that torch can use; leave the option out for the CPU")
    if archive is not None:
        check_archive(archive)
    share = Fraction(1, workers)
    resources = Resources(share if gpus else Fraction(1), cpus=0 if gpus else 1, gpus=float(share) if gpus else 0)
    queues = _queues(names, sweeps, arms, together, device, resources)
    _print_start(queues)
    devices = torch.cuda.device_count() if gpus else workers
    with ray_cluster(address) if use_ray else nullcontext():
        slots = _ray_slots(resources) if use_ray else devices * (workers if gpus else 1)
        executor = RayExecutor(slots) if use_ray else ProcessExecutor(devices, gpus=gpus)
        with StopSignal() as stop, executor:
            scheduler = _schedule(queues, executor, slots, until)
            _watch(queues, scheduler, archive, stop)
    _finish(names, queues, scheduler, sweeps)


def _queues(
    names: Sequence[str],
    sweeps: Path,
    arms: Collection[str],
    together: int | None,
    device: str,
    resources: Resources,
) -> list[SweepQueue]:
    loaded = [load_sweep(Path(name)) for name in names]
    if twice := [sweep.name for sweep in loaded if [other.name for other in loaded].count(sweep.name) > 1]:
        raise UserError(f"sweep {twice[0]} is named twice: name each sweep once")
    known = {arm for sweep in loaded for arm in sweep.arms}
    if len(loaded) > 1 and (unknown := sorted(set(arms) - known)):
        raise UserError(f"none of the sweeps has an arm {unknown[0]!r}")
    queues = []
    for sweep in loaded:
        own = [arm for arm in arms if arm in sweep.arms] if len(loaded) > 1 else arms
        if arms and not own:
            continue
        queues.append(
            SweepQueue(
                sweep,
                SweepFolder(sweeps, sweep.name),
                arms=own,
                together=together or (sweep.together if device == "cuda" else 1),
                device=device,
                resources=resources,
            )
        )
    return queues


def _ray_slots(resources: Resources) -> int:
    """The number of groups that the cluster can run at once."""
    import ray

    total = ray.cluster_resources()
    kind, needed = ("GPU", resources.gpus) if resources.gpus else ("CPU", resources.cpus)
    if total.get(kind, 0) < needed:
        raise UserError(f"the Ray cluster has no {kind}: name another --device, or another cluster")
    return int(total[kind] / needed)


def _schedule(queues: list[SweepQueue], executor: Executor, slots: int, until: float) -> Scheduler:
    def due() -> list[Job]:
        groups: list[Job] = []
        for queue in queues:
            groups += queue.due(max(0, slots - len(groups)), scheduler)
        return groups

    def seconds(job: Job) -> float:
        assert isinstance(job, GroupJob)
        return next(queue.longest_seconds() for queue in queues if queue.sweep.name == job.sweep.name)

    scheduler = Scheduler(due, executor, until=until, seconds=seconds)
    return scheduler


def _watch(queues: list[SweepQueue], scheduler: Scheduler, archive: Path | None, stop: StopSignal) -> None:
    """Run the groups with a progress bar, until a stop signal; pack the archive whenever runs were added."""
    missing = sum(len(queue.missing()) for queue in queues)
    packed = -1
    with stage("sweep", total=missing, unit="runs") as progress:

        def show() -> None:
            nonlocal packed
            left = sum(len(queue.missing()) for queue in queues)
            progress.update(missing - left, note=f"{len(scheduler.running)} groups at work")
            if archive is not None and left != packed:
                pack(archive, queues)
                packed = left

        scheduler.run(show, lambda: stop.received)
        show()


def _print_start(queues: list[SweepQueue]) -> None:
    for queue in queues:
        missing = queue.missing()
        tokens = sum(evaluated_tokens(queue.sweep, run) for run in missing)
        console.print(
            f"{queue.sweep.name}: {len(missing)} runs to do, {len(queue.chosen) - len(missing)} there or not needed; "
            f"{tokens / 1e6:,.0f}M tokens to evaluate"
        )


def _finish(names: Sequence[str], queues: list[SweepQueue], scheduler: Scheduler, sweeps: Path) -> None:
    failures = scheduler.failures()
    for queue in queues:
        left = len(queue.missing())
        folder = queue.folder
        if left and not failures:
            console.print(
                f"{queue.sweep.name}: {left} runs are left, for lack of time, after a stop, or because somebody else has them; "
                "the same command goes on"
            )
        elif not left and len(queue.chosen) == len(queue.planned):
            name = next(name for name in names if load_sweep(Path(name)).name == queue.sweep.name)
            console.print(f"report: {write_report(Path(name), sweeps, folder.path)}")
    if failures:
        name, reason = next(iter(failures.items()))
        logs = ", ".join(dict.fromkeys(str(queue.folder.path / "logs") for queue in queues))
        raise UserError(
            f"{len(failures)} groups of runs failed, first {name}: {reason} (see {logs}); the same command tries them again"
        )
