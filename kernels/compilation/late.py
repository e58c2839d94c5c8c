"""Kernels that were not compiled before their launch, while others wait."""

from typing import Any


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
