"""GPUs by number, among those that this process may see."""

import os
from collections.abc import Iterable

from ..models.common.errors import UserError


def visible_gpus(numbers: Iterable[int]) -> str:
    """The CUDA_VISIBLE_DEVICES of a child that is to have these GPUs, counted from 0 among those that are visible here.

    A scheduler may have given this process some of a machine's GPUs; the variable names them among all of the machine's.

    Raises:
        UserError: fewer are visible.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return ",".join(map(str, numbers))
    names = [name for name in given.split(",") if name]
    numbers = list(numbers)
    if max(numbers) >= len(names):
        raise UserError(
            f"GPU {max(numbers)} is wanted, counted from 0, but CUDA_VISIBLE_DEVICES={given} shows {len(names)}: "
            f"ask for fewer, or make more visible"
        )
    return ",".join(names[number] for number in numbers)
