"""SKA one token at a time: O(R^2 + P R) by a rank-one update of the Cholesky factor of G (docs/models.md, "Decoding").

Updating G^-1 itself would be as cheap and fails in fp32 on keys of low rank; the factor does not.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .state import SKAState


class DecodeState(NamedTuple):
    """What decoding carries: `3 R^2 + P R + R` numbers a head; chunk mode reads from a second, older set of sums.

    Attributes:
        sums: over all tokens so far.
        factor: `[B, H, R, R]`, the lower Cholesky factor of the gram that is read from, ridge included.
        visible: chunk mode only: the sums at the last border of the chunk grid, which are read from.
        position: chunk mode only: int64 `[B]`, tokens so far.
    """

    sums: SKAState
    factor: Tensor
    visible: SKAState | None = None
    position: Tensor | None = None


def start_decoding(
    sums: SKAState, *, ridge: float, visible: SKAState | None = None, position: Tensor | None = None
) -> DecodeState:
    """Factor the sums that a prefill returned. `visible` and `position` select chunk mode."""
    return DecodeState(sums, _factor(sums if visible is None else visible, ridge), visible, position)


def ska_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: DecodeState,
    *,
    power: int = 1,
    ridge: float = 1e-3,
    scale: float | Tensor = 1.0,
    chunk_size: int = 64,
    value_lag: bool = False,
) -> tuple[Tensor, DecodeState]:
    """Write one token, then read: what `ska_attention` gives at this position, in the mode of the state.

    Args:
        q, k: `[B, H, R]`; v: `[B, H, P]`.
        power, ridge, scale, chunk_size, value_lag: as in `ska_attention`.

    Returns:
        y `[B, H, P]`, in the dtype of `v`, and the new state.
    """
    dtype = state.factor.dtype
    q, k, out_dtype, v = q.to(dtype), k.to(dtype), v.dtype, v.to(dtype)
    if state.visible is not None:
        state = _refresh(state, ridge, chunk_size)
    gram, transition, value_map, previous = state.sums
    sums = SKAState(
        gram + k[..., :, None] * k[..., None, :],
        transition + k[..., :, None] * previous[..., None, :],
        value_map + v[..., :, None] * (previous if value_lag else k)[..., None, :],
        k,
    )
    if state.visible is None:
        new = DecodeState(sums, update_factor(state.factor, k))
        read = sums
    else:
        new = state._replace(sums=sums, position=state.position + 1)
        read = state.visible
    if isinstance(scale, Tensor):
        scale = scale.to(dtype)[:, None, None]
    x = torch.cholesky_solve(q[..., None], new.factor)
    for _ in range(power):
        x = torch.cholesky_solve(scale * (read.transition @ x), new.factor)
    return (read.value_map @ x).squeeze(-1).to(out_dtype), new


def update_factor(factor: Tensor, key: Tensor) -> Tensor:
    """The Cholesky factor of L L^T + z z^T from L, `[..., R, R]`, and z `[..., R]`.

    L L^T + z z^T = L (I + p p^T) L^T with p = L^-1 z, and I + p p^T has a factor in closed form: with
    a_j = 1 + p_1^2 + ... + p_j^2 its diagonal is sqrt(a_j / a_{j-1}), and below it p_i p_j / sqrt(a_j a_{j-1}).
    Column j of the product needs the sum of L_i p_i over i > j: a suffix sum, so no loop over columns
    (Gill, Golub, Murray and Saunders 1974, method C1).
    """
    p = torch.linalg.solve_triangular(factor, key[..., None], upper=False).squeeze(-1)
    a = 1 + (p * p).cumsum(-1)
    before = torch.cat((torch.ones_like(a[..., :1]), a[..., :-1]), -1)
    weighted = factor * p[..., None, :]
    after = weighted.flip(-1).cumsum(-1).flip(-1) - weighted
    # The change is added to L, not L multiplied by a factor near 1: rounding that factor would add up over the tokens.
    grow = torch.expm1(0.5 * torch.log1p(p * p / before))
    return factor + (factor * grow[..., None, :] + after * (p / (a * before).sqrt())[..., None, :])


def _factor(sums: SKAState, ridge: float) -> Tensor:
    gram = sums.gram.clone()
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return torch.linalg.cholesky_ex(gram)[0]


def _refresh(state: DecodeState, ridge: float, chunk_size: int) -> DecodeState:
    """At a border of the chunk grid, read from all sums so far."""
    border = state.position % chunk_size == 0
    if not bool(border.any()):
        return state
    visible = SKAState(
        *(
            torch.where(border.view(-1, *[1] * (new.dim() - 1)), new, old)
            for new, old in zip(state.sums, state.visible, strict=True)
        )
    )
    return state._replace(visible=visible, factor=_factor(visible, ridge))
