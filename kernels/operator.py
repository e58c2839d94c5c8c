"""Registration of custom operators that torch.compile, autocast and activation checkpointing treat as a whole.

`torch.library.custom_op` does the same with checks in Python on every call: 0.7 ms a call on the host of an H100, more
than the kernels of a layer took (docs/design/kernels.md).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable)

NAMESPACE = "echo_lm"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def uncompiled(function: Function) -> Function:
    """`torch.compiler.disable` as a decorator that keeps the function's type.

    It is that of torch's optimizers, which imports `torch._dynamo` at the first call: more than a second, which processes that
    only count parameters or prepare a start need not spend.
    """
    return cast(Function, torch._disable_dynamo(function))  # pyright: ignore[reportPrivateImportUsage]


def without_autocast(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Context in which products of the device of x are not autocast. Nothing where they are not anyway: a context in a compiled
    graph keeps it out of torch.compile's cache, so that every start would trace the graph's backward pass again."""
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


_functions_on_meta = False


@contextlib.contextmanager
def functions_on_meta() -> Iterator[None]:
    """Context in which operators run their functions on tensors on "meta" too, instead of only telling the shapes of the outputs:
    `kernels/compilation` records what they launch."""
    global _functions_on_meta
    _functions_on_meta = True
    try:
        yield
    finally:
        _functions_on_meta = False


def register(
    name: str,
    function: Callable,
    fake: Callable,
    save: Callable | None = None,
    differentiate: Callable | None = None,
    *,
    any_layout: bool = False,
) -> Callable:
    """Make `torch.ops.echo_lm.<name>` of a function that mutates nothing, and return it.

    Args:
        function: annotated, tensors and numbers in, tensors out; none of them an alias of another.
        fake: the same outputs without their values, for tracing.
        save: `(ctx, inputs, output)`, as `setup_context` of an autograd.Function.
        differentiate: `(ctx, *gradients)`, its backward; None for an operator without gradients.
        any_layout: the function takes tensors however they lie, so that a compiler need not copy them.
    """
    tags = [torch.Tag.flexible_layout] if any_layout else []
    _library.define(name + torch.library.infer_schema(function, mutates_args=()), tags=tags)
    _library.impl(name, function, "CompositeExplicitAutograd")

    def on_meta(*inputs):
        return (function if _functions_on_meta else fake)(*inputs)

    torch.library.register_fake(f"{NAMESPACE}::{name}", on_meta, lib=_library)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    if differentiate is None:
        return operator
    assert save is not None

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                output = operator(*inputs)
            save(ctx, inputs, output)
            return output

        backward = staticmethod(differentiate)

    def autograd(*inputs):
        if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs):
            return Differentiable.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    _library.impl(name, autograd, "Autograd")
    return operator
