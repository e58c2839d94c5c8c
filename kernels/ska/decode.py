"""Decoding with SKA, one token at a time: O(R^2 + P R) by a rank-one update of a triangular factor (docs/design/kernels.md,
"Decoding").

The state carries W = L^-1, the inverse of the Cholesky factor of G: solves are two matrix-vector products then, and the
update has a closed form. Updating G^-1 itself would be as cheap and fails in fp32 on keys of low rank; W does not.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .cholesky import invert
from .fused import ska_step_fused, why_not_fused_step
from .state import SKAState


class DecodeState(NamedTuple):
    """The state of SKA in decoding, `3 R^2 + P R + R` numbers per head; chunk mode reads from a second, older set of sums.

    `ska_step` updates every tensor in place: `clone` before going on in two directions.

    Attributes:
        sums: over all tokens so far.
        inverse: `[B, H, R, R]`, W with W G W^T = I, lower triangular, of the gram that is read from, ridge included.
        visible: chunk mode only: the sums at the last border of the chunk grid, which are read from.
        position: chunk mode only: int64 `[B]`, tokens so far.
    """

    sums: SKAState
    inverse: Tensor
    visible: SKAState | None = None
    position: Tensor | None = None

    def clone(self) -> "DecodeState":
        """A copy that shares no memory with this one."""
        visible = None if self.visible is None else _copy(self.visible)
        position = None if self.position is None else self.position.clone()
        return DecodeState(_copy(self.sums), self.inverse.clone(), visible, position)


def start_decoding(
    sums: SKAState, *, ridge: float, visible: SKAState | None = None, position: Tensor | None = None
) -> DecodeState:
    """The decoding state from the sums that a prefill returned, which are factored and copied. `visible` and `position` select
    chunk mode."""
    inverse = _inverse_factor(sums if visible is None else visible, ridge)
    # Copies: the steps write in place, and callers pass one tensor for both sets of sums, or views of activations.
    return DecodeState(sums, inverse, visible, position).clone()


@torch.no_grad()
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
    blend: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """One decoding step: write a token, then read; the result is that of `ska_attention` at this position, in the mode of the
    state.

    Updates `state` in place and gives no gradients. One Triton kernel where it runs, else PyTorch.

    Args:
        q: query `[B, H, R]`.
        k: key `[B, H, R]`.
        v: value `[B, H, P]`.
        power: as in `ska_attention`.
        ridge: as in `ska_attention`.
        scale: as in `ska_attention`.
        chunk_size: as in `ska_attention`.
        value_lag: as in `ska_attention`.
        blend: `[B, H, power + 1]`, as there; the kernel does not take it.
        backend: "triton", "torch", or "auto" for the faster that runs here.

    Returns:
        y `[B, H, P]`, in the dtype of `v`.

    Raises:
        ValueError: no such backend, or the kernel does not take these arguments.
    """
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"backend must be auto, torch or triton, not {backend!r}")
    if state.visible is not None:
        _refresh(state, ridge, chunk_size)
    if backend != "torch":
        obstacle = why_not_fused_step(q, k, v, state.inverse, power=power)
        obstacle = "the read of one power, not a blend" if blend is not None else obstacle
        if backend == "triton" and obstacle:
            raise ValueError(f'backend "triton" needs {obstacle}; backend "torch" takes any')
        backend = "torch" if obstacle else "triton"
    options = dict(power=power, scale=scale, value_lag=value_lag)
    if backend == "triton":
        y = ska_step_fused(q, k, v, state.sums, state.inverse, state.visible, **options)
    else:
        y = _step(q, k, v, state.sums, state.inverse, state.visible, blend, **options)
    if state.position is not None:
        state.position.add_(1)
    return y


@torch.no_grad()
def ska_read(q: Tensor, state: DecodeState) -> Tensor:
    """Read without writing, with K = 0: C G^-1 q of the sums that the last step read from. `[B, H, R]` -> `[B, H, P]`, in the dtype
    of `q`; no gradients."""
    sums = state.sums if state.visible is None else state.visible
    x = state.inverse.mT @ (state.inverse @ q.to(state.inverse.dtype)[..., None])
    return (sums.value_map @ x).squeeze(-1).to(q.dtype)


def _step(q, k, v, sums, inverse, visible, blend, *, power, scale, value_lag) -> Tensor:
    dtype = inverse.dtype
    q, k, out_dtype, v = q.to(dtype), k.to(dtype), v.dtype, v.to(dtype)
    sums.gram.add_(k[..., :, None] * k[..., None, :])
    sums.transition.add_(k[..., :, None] * sums.last_key[..., None, :])
    sums.value_map.add_(v[..., :, None] * (sums.last_key if value_lag else k)[..., None, :])
    sums.last_key.copy_(k)
    if visible is None:
        inverse.copy_(update_inverse(inverse, k))
    read = sums if visible is None else visible
    if isinstance(scale, Tensor):
        scale = scale.to(dtype)[:, None, None]
    x = inverse.mT @ (inverse @ q[..., None])
    xs = [x]
    for _ in range(power):
        x = inverse.mT @ (inverse @ (scale * (read.transition @ x)))
        xs.append(x)
    if blend is not None:
        x = torch.cat(xs, -1) @ blend.to(dtype)[..., None]
    return (read.value_map @ x).squeeze(-1).to(out_dtype)


def update_inverse(inverse: Tensor, key: Tensor) -> Tensor:
    """The inverse Cholesky factor of G + z z^T from that of G, W `[..., R, R]`, and z `[..., R]`.

    W (G + z z^T) W^T = I + p p^T with p = W z. With a_i = 1 + p_1^2 + ... + p_i^2 the inverse factor of I + p p^T has
    the diagonal sqrt(a_{i-1} / a_i) and, below it, -p_i p_j / sqrt(a_i a_{i-1}). Row i of its product with W needs the
    sum of p_j W_j over j < i: a prefix sum, so no loop over columns (the inverse of Gill, Golub, Murray and Saunders
    1974, method C1).
    """
    p = (inverse @ key[..., None]).squeeze(-1)
    # Sums over j < i: taken from shifted rows, as subtracting row i's own large part would cancel.
    shifted = torch.cat((torch.zeros_like(p[..., :1]), p[..., :-1]), -1)
    rows = torch.cat((torch.zeros_like(inverse[..., :1, :]), inverse[..., :-1, :]), -2)
    before = 1 + (shifted * shifted).cumsum(-1)
    after = before + p * p
    # The change is added to W, not W multiplied by a factor near 1: rounding that factor would add up over the tokens.
    shrink = torch.expm1(-0.5 * torch.log1p(p * p / before))
    earlier = (shifted[..., None] * rows).cumsum(-2)
    return inverse + (shrink[..., None] * inverse - (p / (before * after).sqrt())[..., None] * earlier)


def _copy(sums: SKAState) -> SKAState:
    return SKAState(*(part.clone(memory_format=torch.contiguous_format) for part in sums))


def _inverse_factor(sums: SKAState, ridge: float) -> Tensor:
    gram = sums.gram.clone()
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    return torch.linalg.solve_triangular(invert(gram, ridge).factor, eye, upper=False).contiguous()


def _refresh(state: DecodeState, ridge: float, chunk_size: int) -> None:
    """At a border of the chunk grid, make all sums so far visible to the reads of chunk mode."""
    visible, position = state.visible, state.position
    assert visible is not None
    assert position is not None
    border = position % chunk_size == 0
    if not bool(border.any()):
        return
    for new, old in zip(state.sums, visible, strict=True):
        old.copy_(torch.where(border.view(-1, *[1] * (new.dim() - 1)), new, old))
    fresh = _inverse_factor(visible, ridge)
    state.inverse.copy_(torch.where(border[:, None, None, None], fresh, state.inverse))
