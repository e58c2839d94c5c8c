"""Compilation of Triton kernels ahead of their first launch, also for a GPU that is not here; read `target.py`, `recording.py`,
then `pool.py`."""

from .late import before_compilation, watch_late_kernels
from .pool import Compiled, cache_folder, compile_kernels
from .recording import Kernel, Recording, recorded_kernels
from .target import Target, find_target

__all__ = [
    "Compiled",
    "Kernel",
    "Recording",
    "Target",
    "before_compilation",
    "cache_folder",
    "compile_kernels",
    "find_target",
    "recorded_kernels",
    "watch_late_kernels",
]
