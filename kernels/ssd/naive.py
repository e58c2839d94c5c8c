"""The reference form of the Mamba-2 recurrence, token by token (arXiv 2405.21060 §2.1): slow, in any dtype; all other forms are
tested against it."""

import torch
from torch import Tensor


def ssd_naive(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *, chunk_size: int, starts: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The Mamba-2 scan token by token: h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T, y_t = h_t c_t.

    Args:
        x: `[B, T, H, P]`; dt: `[B, T, H]`; a: `[H]`; b, c: `[B, T, G, N]`, each group serving H / G heads in a row.
        chunk_size: not used.
        starts: bool `[B, T]`, the first tokens of documents inside rows, or None.
        state: `[B, H, P, N]`.

    Returns:
        y `[B, T, H, P]` and the state after the last token.
    """
    share = x.shape[2] // b.shape[2]
    b, c = b.repeat_interleave(share, 2), c.repeat_interleave(share, 2)
    ys = []
    for t in range(x.shape[1]):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        state = ssd_update(state, x[:, t], dt[:, t], a, b[:, t])
        ys.append(torch.einsum("bhpn,bhn->bhp", state, c[:, t]))
    return torch.stack(ys, 1), state


def ssd_update(state: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The state after one more token: state `[B, H, P, N]`, x `[B, H, P]`, dt `[B, H]`, a `[H]`, b `[B, H, N]`."""
    return state * torch.exp(dt * a)[..., None, None] + (dt[..., None] * x)[..., None] * b[..., None, :]
