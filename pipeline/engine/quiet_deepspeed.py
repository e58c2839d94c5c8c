"""Import of DeepSpeed without its side effects: `from .quiet_deepspeed import deepspeed`. Importing it takes seconds."""
# ruff: noqa: E402

import os
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch

# With a named accelerator it neither probes for others nor warns that there is none. A machine with GPUs may show none to this
# process, and a CPU build of torch sees none.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

# Its autotuner, which we do not use, imports MLflow where that is installed.
_hidden = "mlflow" not in sys.modules
if _hidden:
    sys.modules["mlflow"] = None  # pyright: ignore[reportArgumentType]  # what makes an import fail
import deepspeed

if _hidden:
    del sys.modules["mlflow"]
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.ops import __compatible_ops__
from deepspeed.runtime import compiler
from deepspeed.utils import logger

# It would compile a shared-memory collective for CPU ranks at start (24-55 s); gloo does the same work.
__compatible_ops__["deepspeed_shm_comm"] = False
# Whatever the optimizer, ZeRO imports Muon, which is decorated with this and so imports Inductor: seconds. We have no use for it.
compiler.compile = lambda *arguments, **options: lambda function: function
logger.setLevel("WARNING")

__all__ = ["deepspeed", "gathered", "use_cpu"]


def use_cpu() -> None:
    """Let DeepSpeed work on the CPU, also where it has found a GPU."""
    set_accelerator(CPU_Accelerator())


def gathered(engine: Any, parameters: list, *, write: bool = False) -> AbstractContextManager:
    """Context in which parameters are whole on every rank; only ZeRO-3 partitions them. With `write`, rank 0's values stay."""
    return deepspeed.zero.GatheredParameters(
        parameters, modifier_rank=0 if write else None, enabled=engine.zero_optimization_stage() == 3
    )
