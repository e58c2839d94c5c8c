"""Direct launches of compiled Triton kernels, without Triton's binding of arguments, which takes longer on the host than a small
kernel on the device."""

from collections.abc import Callable
from typing import Any, cast

import triton
from torch import Tensor


def device_function(function: Callable) -> Callable[..., Any]:
    """`triton.jit` for a function that kernels call. Triton declares that no call of it returns, which is true outside of kernels,
    and a type checker would take the rest of the kernel for unreachable."""
    return triton.jit(function)


def cdiv(x: int, y: int) -> int:
    """x / y rounded up: `triton.cdiv` with the type that it has outside of kernels."""
    return (x + y - 1) // y


def next_power_of_2(n: int) -> int:
    """The smallest power of two from n on: Triton's function with the type that it has outside of kernels."""
    return cast(int, triton.next_power_of_2(n))


class Launcher:
    """A kernel with its constexprs and dtypes fixed: bound and compiled at the first call, launched directly after it.

    Whoever holds one promises that the dtype of each argument stays the same. Integers must be `do_not_specialize`
    parameters, and constexprs the last ones in the kernel's signature.
    """

    def __init__(self, kernel: triton.JITFunction, *, num_warps: int, **constants):
        self._kernel = kernel
        self._constants = dict(constants, num_warps=num_warps)
        names = list(kernel.arg_names)
        self._values = [constants[name] for name in names[len(names) - len(constants) :]]
        self._compiled = None

    def __call__(self, grid: tuple[int, ...], *args: Tensor | float | int | None) -> None:
        pointers, together = [], 0
        for arg in args:
            if isinstance(arg, Tensor):
                arg = arg.data_ptr()
                together |= arg
            pointers.append(arg)
        # Code compiled for pointers that are multiples of 16 bytes is wrong for others.
        aligned = together % 16 == 0
        if aligned and self._compiled is not None:
            self._compiled[(*grid, 1, 1)[:3]](*pointers, *self._values)
            return
        compiled = self._kernel[grid](*args, **self._constants)
        if aligned:
            self._compiled = compiled  # None under the interpreter
