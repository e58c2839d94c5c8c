"""Two-hop heads of SKA: the result of a first read is the query of a second one (docs/design/recall.md, "Two hops").

A write binds to the key of the token before, z_t, beside this token's value v_t also this token's own key u_t, under the same
gate. With G = ridge I + sum z z^T, C = sum v z^T and U = sum u z^T a head of one hop reads C G^-1 q, one of two hops
C G^-1 (U G^-1 q).
"""

from typing import Any, Literal, Unpack, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.ska import DecodeState, SKAOptions, WriteGate, ska_attention, ska_read, ska_step, write_gate
from ...kernels.ska.constants import SMALLEST_NORM
from ...kernels.ska.state import SKAState


def bind_next_keys(
    v: Tensor, packed: Tensor, bias: Tensor | None, *, heads: int, rank: int, width: int, kind: WriteGate
) -> Tensor:
    """Append to each gated value `[..., H, P]` the token's own gated key u: `[..., H, P + R]`.

    Arguments are those of `normalize_and_gate`; here the last `H R` columns of `packed` are the tokens' own keys before
    normalization.
    """
    wide = torch.promote_types(packed.dtype, torch.float32)
    own = packed[..., -heads * rank :].unflatten(-1, (heads, rank)).to(wide)
    own = F.normalize(own, dim=-1, eps=SMALLEST_NORM)
    if kind != "none":
        assert bias is not None
        first = heads * (2 * rank + width)
        own = own * write_gate(packed[..., first : first + heads].to(wide) + bias, kind)[..., None]
    return torch.cat((v, own.to(v.dtype)), -1)


@overload
def read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    two_hop_heads: int,
    *,
    return_state: Literal[False] = False,
    **options: Unpack[SKAOptions],
) -> Tensor: ...


@overload
def read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    two_hop_heads: int,
    *,
    return_state: Literal[True],
    **options: Unpack[SKAOptions],
) -> tuple[Tensor, SKAState]: ...


def read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    two_hop_heads: int,
    *,
    return_state: bool = False,
    **options: Unpack[SKAOptions],
) -> Tensor | tuple[Tensor, SKAState]:
    """`ska_attention` in which the first `two_hop_heads` heads read a second time; plain `ska_attention` if there are none.

    Args:
        v: `[B, T, H, P + R]`, of `bind_next_keys`; without such heads `[B, T, H, P]`.
        options: as in `ska_attention`, with `power` 0 and no blend where there are such heads.

    Returns:
        y `[B, T, H, P]`; with `return_state` also the state, whose value map also holds U.
    """
    if not return_state:
        y, state = ska_attention(q, k, v, **options), None
    else:
        y, state = ska_attention(q, k, v, return_state=True, **options)
    if not two_hop_heads:
        return y if state is None else (y, state)
    y, found = _split(y, k)
    of_heads = slice(two_hop_heads)
    entering, scale = options.get("state"), options.get("scale")
    if entering is not None:
        gram, transition, value_map, last_key = (part[:, of_heads] for part in entering)
        options["state"] = SKAState(gram, transition, value_map[:, :, : y.shape[-1]], last_key)
    if isinstance(scale, Tensor):
        options["scale"] = scale[of_heads]
    again = ska_attention(*(x[:, :, of_heads].contiguous() for x in (found, k, _split(v, k)[0])), **options)
    y = torch.cat((again, y[:, :, two_hop_heads:]), 2)
    return y if state is None else (y, state)


def read_step(q: Tensor, k: Tensor, v: Tensor, state: DecodeState, two_hop_heads: int, **options: Any) -> Tensor:
    """One decoding step with two-hop heads, like `ska_step`: `[B, H, *]`."""
    y = ska_step(q, k, v, state, **options)
    if not two_hop_heads:
        return y
    y, found = _split(y, k)
    again = _split(ska_read(found, state), k)[0]
    return torch.cat((again[:, :two_hop_heads], y[:, two_hop_heads:]), 1)


def _split(v: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """Values and, as wide as `k`, keys."""
    return v.split((v.shape[-1] - k.shape[-1], k.shape[-1]), -1)
