"""CUDA_VISIBLE_DEVICES for child processes that get some of this process's GPUs."""

import os
from collections.abc import Iterable

from ..models.common.errors import UserError


def visible_gpus(numbers: Iterable[int]) -> str:
    """CUDA_VISIBLE_DEVICES for a child process on the GPUs `numbers`, counted from 0 among those visible to this process.

    The variable itself numbers GPUs among all of the machine, of which a scheduler may have assigned some to this process.

    Raises:
        UserError: fewer are visible.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ",".join(map(str, numbers))
    names = [name for name in visible.split(",") if name]
    numbers = list(numbers)
    if max(numbers) >= len(names):
        raise UserError(
            f"GPU {max(numbers)} is wanted, counted from 0, but CUDA_VISIBLE_DEVICES={visible} shows {len(names)}: "
            f"ask for fewer, or make more visible"
        )
    return ",".join(names[number] for number in numbers)
