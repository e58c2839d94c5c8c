"""Compilation of recorded kernels into Triton's cache, side by side over the cores."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from .late import watch_late_kernels
from .recording import Kernel
from .target import NoGPU, Target

# Three quarters of the time for a model with SKA layers: begun first, so that the last process to end ends early.
SLOWEST = ("read_forward", "step_backward", "read_backward", "invert", "factor")

_jobs: Sequence[Kernel] = ()  # of the pool's processes, which are forked: kernels cannot be pickled


class Compiled(NamedTuple):
    """The outcome for one kernel. key: `Kernel.key`; was_there: in the cache before; shared_bytes: shared memory of a program;
    hash: Triton's name of it; error: why it did not compile, or None."""

    name: str
    key: str
    seconds: float
    was_there: bool
    shared_bytes: int
    hash: str
    error: str | None = None


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cache_folder() -> Path:
    """The folder in which Triton keeps compiled kernels, made if it is missing."""
    from triton import knobs

    folder = Path(knobs.cache.dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def compile_kernels(
    kernels: Sequence[Kernel], target: Target, workers: int | None = None, *, begin: Callable[[], None] | None = None
) -> Iterator[Compiled]:
    """Compile the kernels that are missing in Triton's cache (`TRITON_CACHE_DIR`) for the target; yields each when it is done.

    Args:
        workers: processes that compile, one kernel at a time each; all cores if None.
        begin: called first in each process.
    """
    from triton.runtime.cache import triton_key

    global _jobs
    if not kernels:
        return
    triton_key()  # a hash of all of Triton, which every process would take a second for
    _jobs = sorted(kernels, key=lambda kernel: kernel.name not in SLOWEST)
    workers = min(workers or cores(), len(kernels))
    # Forked, so that no process imports torch again; nothing here has started CUDA or threads of its own.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(target, begin)) as pool:
        for future in as_completed([pool.submit(_compile, number) for number in range(len(kernels))]):
            yield future.result()


def _prepare(target: Target, begin: Callable[[], None] | None) -> None:
    from triton.runtime import driver

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would answer after the kernel, which can take half a minute
    if begin is not None:
        begin()

    stand_in: Any = NoGPU(target)
    driver.set_active(stand_in)


def _compile(number: int) -> Compiled:
    kernel = _jobs[number]
    late = watch_late_kernels()
    started = time.perf_counter()
    try:
        compiled: Any = kernel.function.preload(kernel.variant)
    except Exception as error:  # Triton's compiler raises its own and LLVM's
        return Compiled(
            kernel.name, kernel.key, time.perf_counter() - started, False, 0, "", f"{type(error).__name__}: {error}"
        )
    seconds = time.perf_counter() - started
    return Compiled(kernel.name, kernel.key, seconds, not late, compiled.metadata.shared, compiled.hash)
