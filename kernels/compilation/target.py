"""The GPU that kernels are compiled for: named, or found on this machine without occupying it."""

import re
import subprocess
from typing import Any, NamedTuple

# Compute capabilities of GPUs of data centres and workstations (developer.nvidia.com/cuda-gpus).
CAPABILITIES = {"a100": 80, "a10": 86, "a40": 86, "l4": 89, "l40": 89, "l40s": 89, "h100": 90, "h200": 90, "gh200": 90}
CAPABILITIES |= {"b200": 100, "gb200": 100}
WARP_SIZE = 32


class Target(NamedTuple):
    """A GPU by what compiled code depends on. capability: compute capability times ten, 90 for Hopper."""

    capability: int

    def __str__(self) -> str:
        return f"sm_{self.capability}"


def find_target(name: str | None = None) -> Target:
    """The target by its name, such as "h200" or "sm_90"; if None, the first GPU of this machine.

    Raises:
        ValueError: an unknown name, or None on a machine without a GPU.
    """
    if name is None:
        return _target_here()
    if match := re.fullmatch(r"sm_?(\d{2,3})a?", name.lower()):
        return Target(int(match[1]))
    if name.lower() not in CAPABILITIES:
        raise ValueError(
            f"unknown GPU {name!r}: one of {', '.join(sorted(CAPABILITIES))}, or a capability such as sm_90"
        )
    return Target(CAPABILITIES[name.lower()])


def _target_here() -> Target:
    # Asking torch would start CUDA in this process, which takes a second and holds memory of the GPU.
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        major, minor = answer.split()[0].split(".")
        return Target(10 * int(major) + int(minor))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        raise ValueError("there is no NVIDIA GPU here: name one, such as h200 or sm_90") from None


class NoGPU:
    """Stands in for Triton's driver where nothing is launched."""

    def __init__(self, target: Target):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", target.capability, WARP_SIZE)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> str:
        """What Triton keeps its decisions for a target under."""
        return f"sm_{self._target.arch}, not here"

    def get_current_stream(self, device: Any) -> int:
        return 0
