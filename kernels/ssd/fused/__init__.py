"""The Mamba-2 scan in Triton, forward and backward (docs/design/kernels.md, SSD)."""

import torch
from torch import Tensor

from ...available import INTERPRETER, TRITON, on_gpu

LARGEST_STATE = 128  # d_state: wider ones do not fit the registers of a program
LARGEST_WIDTH = 128  # of a head
CHUNK_SIZES = (16, 32, 64)


def why_not_fused(x: Tensor, b: Tensor, chunk_size: int | None) -> str | None:
    """Why the kernels cannot compute with these arguments of `ssd_scan`; None if they can."""
    if not TRITON:
        return "triton"
    if not (on_gpu(x) or INTERPRETER):
        return "CUDA tensors"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"x in fp32, bf16 or fp16, not {x.dtype}"
    if x.shape[-1] > LARGEST_WIDTH or b.shape[-1] > LARGEST_STATE:
        widths = f"{x.shape[-1]} and {b.shape[-1]}"
        return f"heads of at most {LARGEST_WIDTH} channels and at most {LARGEST_STATE} states, not {widths}"
    if chunk_size is not None and chunk_size not in CHUNK_SIZES:
        return f"a chunk_size of {', '.join(map(str, CHUNK_SIZES))}, not {chunk_size}"
    return None


def ssd_fused(*args, **options) -> tuple[Tensor, Tensor]:
    """The Mamba-2 scan by Triton kernels; see `op.py`, which is imported here as it needs triton."""
    from .op import ssd_fused

    return ssd_fused(*args, **options)
