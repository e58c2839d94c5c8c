"""Before the operation: queries and keys to unit length, the write gate on keys and values.

On CUDA one kernel each way, as this is all memory traffic: six reads and writes where PyTorch makes some thirty.
"""

import importlib.util
import os

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NORM = 1e-6


def weigh(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q / |q|, g k / |k| and g v, in the dtypes of q, k and v; norms below 1e-6 count as 1e-6.

    Args:
        q, k: `[..., H, R]`; v: `[..., H, P]`.
        gate: g `[..., H]`, or None for 1.
    """
    fused = q.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if fused and q.dim() == 4 and q.dtype != torch.float64 and importlib.util.find_spec("triton") is not None:
        from .fused.weigh import weigh_fused

        if gate is None:
            gate = q.new_ones(q.shape[:-1])
        return weigh_fused(q, k, v, gate)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q_unit, z = (F.normalize(x.to(wide), dim=-1, eps=SMALLEST_NORM) for x in (q, k))
    if gate is not None:
        gate = gate.to(wide)[..., None]
        z, v = z * gate, (v.to(wide) * gate).to(v.dtype)
    return q_unit.to(q.dtype), z.to(k.dtype), v
