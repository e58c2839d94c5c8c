"""`echo-lm compile`: the kernels of a recipe, ahead of its training."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .options import Overrides, Runs, Target


def compile(
    target: Target,
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option(help="GPU to compile for, e.g. h200 or sm_90; the one of this machine if left out.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Kernels at once; one a core if left out.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Compile the Triton kernels that a recipe's training launches, without running it and without a GPU. A repetition compiles
    only what is missing."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as in a training: see `KernelCompilation`
    from ..launch.compile import compile_run
    from ..launch.target import resolve_target

    config, _ = resolve_target(target, overrides, runs)
    compile_run(config, device, workers)
