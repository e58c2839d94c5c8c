"""Kernels of a process that computes: a wait before Triton compiles one, and the names of those that it compiles all the same."""

from collections.abc import Callable
from typing import Any

from .recording import key_of


def before_compilation(wait_for: Callable[[str], None] | None) -> None:
    """Call `wait_for` with the key of each variant of a kernel at its first launch in this process, before Triton looks for it in
    its cache; None ends that."""
    from triton import knobs

    if wait_for is None:
        knobs.runtime.jit_cache_hook = None
        return

    def before(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        wait_for(key_of(fn.jit_function.__name__, compile["specialization_data"]))
        return False  # go on

    hook: Any = before  # declared is a protocol of fixed names
    knobs.runtime.jit_cache_hook = hook


def watch_late_kernels() -> list[str]:
    """A list to which the names of kernels are appended that this process compiles at their launch from now on; those that
    torch.compile generates do not count."""
    from triton import knobs

    names: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit and not src.name.startswith("triton_"):
            names.append(src.name)

    listener: Any = listen  # declared is a protocol of fixed names
    knobs.compilation.listener = listener
    return names
