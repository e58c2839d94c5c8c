"""L2 normalisation of queries and keys, and the write gate on keys and values: what precedes `ska_attention`.

On CUDA one kernel each for forward and backward, since the operation is bound by memory traffic: six reads and writes where
PyTorch makes some thirty.
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ..available import INTERPRETER, TRITON, on_gpu
from .constants import HIGH, LOW, SMALLEST_NORM

WriteGate = Literal["none", "sqrt-sigmoid", "hard"]


@overload
def write_gate(logits: Tensor, kind: Literal["none"]) -> None: ...


@overload
def write_gate(logits: Tensor, kind: Literal["sqrt-sigmoid", "hard"]) -> Tensor: ...


@overload
def write_gate(logits: Tensor, kind: WriteGate) -> Tensor | None: ...


def write_gate(logits: Tensor, kind: WriteGate) -> Tensor | None:
    """The write gate in [0, 1] (None for "none"), in fp32 at least: sqrt(sigmoid(.)), or clamp(1.2 sigmoid(.) - 0.1, 0, 1),
    which can be exactly zero, so that closed gates add nothing over a long context."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if kind == "sqrt-sigmoid":
        return torch.exp(0.5 * F.logsigmoid(logits))
    if kind == "hard":
        return (LOW + (HIGH - LOW) * torch.sigmoid(logits)).clamp(0.0, 1.0)
    if kind == "none":
        return None
    raise ValueError(f"unknown write gate {kind!r}: none, sqrt-sigmoid or hard")


def unpack(packed: Tensor, heads: int, rank: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split `packed` into views q, k `[..., H, R]`, v `[..., H, P]` and the remaining columns `[..., *]`."""
    keys = heads * rank
    q, k, v, rest = packed.split((keys, keys, heads * width, packed.shape[-1] - 2 * keys - heads * width), -1)
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q, k, v))
    return q, k, v, rest


def normalize_and_gate(
    packed: Tensor, bias: Tensor | None, *, heads: int, rank: int, width: int, kind: WriteGate = "none"
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise queries and keys and apply the write gate: q / |q|, g k / |k| and g v with g = `write_gate(logits + bias, kind)`;
    norms below 1e-6 count as 1e-6.

    Args:
        packed: `[..., N]`, the output of one projection for all: queries `H R`, keys `H R`, values `H P` and, unless
            kind is "none", gate logits `H`; what is left over is padding.
        bias: `[H]`, of the logits; None where kind is "none".

    Returns:
        `[..., H, R]`, `[..., H, R]`, `[..., H, P]`, in the dtype of `packed`.
    """
    if TRITON and (on_gpu(packed) or INTERPRETER) and packed.dtype != torch.float64:
        from .fused.normalize_and_gate import normalize_and_gate_fused

        return normalize_and_gate_fused(packed, bias, heads, rank, width, kind)
    q, k, v, logits = unpack(packed, heads, rank, width)
    wide = torch.promote_types(packed.dtype, torch.float32)
    q, k = (F.normalize(x.to(wide), dim=-1, eps=SMALLEST_NORM) for x in (q, k))
    if kind != "none":
        assert bias is not None
        gate = write_gate(logits[..., :heads].to(wide) + bias, kind)[..., None]
        k, v = k * gate, v.to(wide) * gate
    return q.to(packed.dtype), k.to(packed.dtype), v.to(packed.dtype)
