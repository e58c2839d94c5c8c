"""Recording of the kernels that a computation launches, without running them and without a GPU.

Inside `recorded_kernels` tensors on "meta", which have shapes and no values, stand for tensors of the GPU. Operators run as there,
up to their launches. For each, Triton works out which variant of the kernel it needs: dtypes, constants, and which numbers are 1
or multiples of 16. Its `jit_cache_hook` then takes the variant, in place of compilation and launch.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import operator, sequence
from .target import NoGPU, Target

MULTIPROCESSORS = 132  # of a Hopper GPU, for kernels whose grid depends on it


class Kernel(NamedTuple):
    """One variant of a kernel. name: of its function; function: the `triton.JITFunction`; variant: its specialization as Triton
    writes it, JSON."""

    name: str
    function: Any
    variant: str

    @property
    def key(self) -> str:
        """The same in every process, for the same variant of the same kernel."""
        return key_of(self.name, self.variant)


def key_of(name: str, variant: str) -> str:
    """A short key of a variant of a kernel."""
    return hashlib.sha256(f"{name} {variant}".encode()).hexdigest()[:24]


class Recording:
    """The kernels that were launched so far, each variant once, in the order of their first launches."""

    def __init__(self) -> None:
        self._kernels: dict[tuple[int, str], Kernel] = {}

    @property
    def kernels(self) -> list[Kernel]:
        return list(self._kernels.values())

    def _take(self, *, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        """Triton's hook before a compilation; True leaves it out, and with it the launch."""
        function = fn.jit_function
        # Triton's name for a kernel depends on which kernels were named before, where they share functions that read global
        # constants (3.6 and 3.7): named here, they are named in the order of a training.
        _ = function.cache_key
        key = id(function), compile["specialization_data"]
        self._kernels.setdefault(key, Kernel(function.__name__, function, key[1]))
        return True


@contextlib.contextmanager
def recorded_kernels(target: Target) -> Iterator[Recording]:
    """Context in which every launch of a Triton kernel on tensors on "meta" is recorded for a GPU of the target.

    For processes that compute nothing else meanwhile: functions of torch that ask for a GPU are replaced for the whole process.
    """
    from triton import knobs
    from triton.runtime import driver

    recording = Recording()
    with contextlib.ExitStack() as stack:
        # `set_active` has no way back on a machine without a GPU.
        stack.enter_context(_replaced(driver, "_active", NoGPU(target)))
        stack.enter_context(operator.functions_on_meta())
        for owner, name, value in _stand_ins():
            stack.enter_context(_replaced(owner, name, value))
        stack.enter_context(_replaced(knobs.runtime, "jit_cache_hook", recording._take))
        yield recording


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _stand_ins() -> list[tuple[Any, str, Callable]]:
    """What would ask for a GPU or other ranks: owner, name, and what takes its place."""
    autocast = torch.autocast

    def autocast_of_meta(device_type: str, *arguments: Any, **options: Any) -> Any:
        return autocast("cpu" if device_type == "meta" else device_type, *arguments, **options)

    def gathered(x: Tensor, context: sequence.SequenceContext) -> Tensor:
        return x.new_empty(context.world, *x.shape)

    return [
        (torch, "autocast", autocast_of_meta),
        (torch.cuda, "device", lambda *_: contextlib.nullcontext()),
        (torch.cuda, "device_of", lambda *_: contextlib.nullcontext()),
        (torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(multi_processor_count=MULTIPROCESSORS)),
        (sequence, "all_gather", gathered),
        (dist, "reduce_scatter", lambda *_, **__: None),
    ]
