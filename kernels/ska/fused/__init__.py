"""SKA in Triton: chunk-causal and exact, forward and backward (docs/design/kernels.md)."""

import torch
from torch import Tensor

from ...available import INTERPRETER, TRITON, on_gpu
from ..state import SKAState

# A chunk of wider ranks does not fit the shared memory of a Hopper multiprocessor.
LARGEST_RANK = 64
LARGEST_WIDTH = 128
LARGEST_POWER = 4


def why_not_fused(q: Tensor, k: Tensor, v: Tensor, *, mode: str, power: int, chunk_size: int) -> str | None:
    """Why the kernels cannot compute with these arguments; None if they can."""
    if not TRITON:
        return "triton"
    if not (on_gpu(q) or INTERPRETER):
        return "CUDA tensors"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16) or not q.dtype == k.dtype == v.dtype:
        return f"q, k and v all in fp32, bf16 or fp16, not {q.dtype}, {k.dtype} and {v.dtype}"
    if mode == "prefix":
        return 'mode "exact" or "chunk"'
    if q.shape[-1] > LARGEST_RANK or v.shape[-1] > LARGEST_WIDTH:
        widths = f"{q.shape[-1]} and {v.shape[-1]}"
        return f"a rank of at most {LARGEST_RANK} and a value width of at most {LARGEST_WIDTH}, not {widths}"
    if power > LARGEST_POWER:
        return f"a power of at most {LARGEST_POWER}, not {power}"
    if mode == "chunk" and (chunk_size < 16 or chunk_size & (chunk_size - 1)):
        return f"a chunk_size that is a power of two from 16, not {chunk_size}"
    return None


def ska_fused(
    q: Tensor, k: Tensor, v: Tensor, *, power: int, blend: Tensor | None = None, **options
) -> tuple[Tensor, SKAState | None]:
    """SKA by Triton kernels, with the arguments and results of `ska_naive`; inputs may be in half precision, sums and solves are
    fp32.

    A blend of powers is a call of the operator for each: the kernels have no place for its weights yet.
    """
    from .op import ska_fused  # triton is not there on every machine

    if blend is None:
        return ska_fused(q, k, v, power=power, **options)
    reads = [ska_fused(q, k, v, power=j, **options) for j in range(power + 1)]
    y = sum(read * blend[..., j : j + 1] for j, (read, _) in enumerate(reads))
    assert isinstance(y, Tensor)
    return y, reads[-1][1]


def why_not_fused_step(q: Tensor, k: Tensor, v: Tensor, inverse: Tensor, *, power: int) -> str | None:
    """Why the decoding kernel cannot compute with these arguments; None if it can."""
    if inverse.dtype != torch.float32:
        return f"a state in fp32, not {inverse.dtype}"
    if q.shape[-1] > LARGEST_WIDTH:
        return f"a rank of at most {LARGEST_WIDTH}, not {q.shape[-1]}"
    # The step holds no chunk: it takes ranks as wide as values.
    narrow = q[..., :LARGEST_RANK], k[..., :LARGEST_RANK]
    return why_not_fused(*narrow, v, mode="exact", power=power, chunk_size=64)


def ska_step_fused(*args, **options) -> Tensor:
    """One decoding step by a Triton kernel; see `decode.py`."""
    from .decode import ska_step_fused

    return ska_step_fused(*args, **options)
