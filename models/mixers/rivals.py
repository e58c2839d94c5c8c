"""What the layers that come from flash-linear-attention refuse."""

from typing import NoReturn

import torch

from ...kernels.rivals import has_library
from ..common.errors import UserError


def check_library(kind: str, device: torch.device) -> None:
    """Refuse a GPU without the library's kernels.

    Raises:
        UserError: flash-linear-attention is not installed; the extra that brings it is named.
    """
    if device.type == "cuda" and not has_library():
        raise UserError(f"{kind} layers need flash-linear-attention on a GPU: pip install 'echo-lm[rivals]'")


def refuse_segments(kind: str) -> NoReturn:
    """Refuse sequence parallelism.

    Raises:
        UserError: always.
    """
    raise UserError(f"{kind} layers cannot be trained on segments of sequences: set run.sequence_parallel=1")
