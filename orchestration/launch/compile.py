"""`echo-lm compile`: kernels of a training compiled into Triton's cache."""

import time
from concurrent.futures.process import BrokenProcessPool

from ...kernels.available import TRITON
from ...kernels.compilation import Compiled, cache_folder, compile_kernels, find_target
from ...models.common.errors import UserError
from ...models.common.parent import end_with_parent
from ...pipeline.compilation.kernels import kernels_of
from ...pipeline.config import RunConfig
from ..progress.bars import console, stage


def compile_run(config: RunConfig, device: str | None, workers: int | None) -> None:
    """Compile the kernels that the run's training launches on `device`, and print how many there were.

    Raises:
        UserError: an unknown device, Triton is not installed, or a kernel does not compile.
    """
    if not TRITON:
        raise UserError("Triton is not installed here: pip install 'echo-lm[gpu]'")
    try:
        gpu = find_target(device)
    except ValueError as error:
        raise UserError(f"--device: {error}") from None
    started = time.perf_counter()
    kernels = kernels_of(config, gpu)
    results: list[Compiled] = []
    try:
        with stage(f"compile for {gpu}", len(kernels), "kernels") as progress:
            for result in compile_kernels(kernels, gpu, workers, begin=end_with_parent):
                results.append(result)
                progress.update(len(results), result.name)
    except BrokenProcessPool:
        raise UserError(
            f"a process that compiled was killed after {len(results)} of {len(kernels)} kernels, as where memory runs out: "
            "the same command goes on, with fewer --workers if need be"
        ) from None
    if failed := [result for result in results if result.error]:
        problems = "; ".join(f"{result.name} ({result.error})" for result in failed)
        raise UserError(f"{len(failed)} of {len(results)} kernels did not compile for {gpu}: {problems}")
    there = sum(result.was_there for result in results)
    seconds = time.perf_counter() - started
    console.print(
        f"{config.name}: {len(results) - there} kernels compiled for {gpu}, {there} were there already, {seconds:.0f} s; "
        f"cache: {cache_folder()}"
    )
