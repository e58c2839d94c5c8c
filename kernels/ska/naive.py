"""The reference form of SKA, token by token as defined (arXiv 2605.06997 §3.2): slow, in any dtype; all other forms are tested
against it.

Gradients come from autograd through the solves. Arguments are those of `ska_attention`, checked and masked there.
"""

import torch
from torch import Tensor

from .state import SKAState


def ska_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mode: str,
    power: int,
    ridge: float,
    scale: Tensor,
    chunk_size: int,
    value_lag: bool,
    starts: Tensor | None,
    state: SKAState,
    blend: Tensor | None = None,
) -> tuple[Tensor, SKAState]:
    """Compute SKA token by token, each token reading from the operator of its mode.

    Args:
        q: queries `[B, T, H, R]`.
        k: keys `[B, T, H, R]`.
        v: values `[B, T, H, P]`.
        scale: `[H]`.
        starts: bool `[B, T]`, the first tokens of documents inside rows, or None.
        state: what the rows continue from.
        blend: `[B, T, H, power + 1]`, or None for the read of `power` alone.

    Returns:
        y `[B, T, H, P]` and the state after the last token of each row.
    """
    length = q.shape[1]
    states = []  # after each token
    operators = []  # the sums that each token reads from
    visible = state  # chunk mode: the state at the last chunk border
    for t in range(length):
        state = _cut(state, starts, t)
        visible = _cut(visible, starts, t)
        if t % chunk_size == 0:
            visible = state
        state = _write(state, k[:, t], v[:, t], value_lag)
        states.append(state)
        operators.append(visible if mode == "chunk" else state)
    if mode == "prefix":
        operators = _last_of_document(states, starts)
    y = torch.stack(
        [
            _read(op, q[:, t], power, ridge, scale, None if blend is None else blend[:, t])
            for t, op in enumerate(operators)
        ],
        1,
    )
    return y, state


def _write(state: SKAState, key: Tensor, value: Tensor, value_lag: bool) -> SKAState:
    """Add one token: key `[B, H, R]`, value `[B, H, P]`."""
    gram, transition, value_map, previous = state
    return SKAState(
        gram + torch.einsum("bhr,bhs->bhrs", key, key),
        transition + torch.einsum("bhr,bhs->bhrs", key, previous),
        value_map + torch.einsum("bhp,bhr->bhpr", value, previous if value_lag else key),
        key,
    )


def _read(
    state: SKAState, query: Tensor, power: int, ridge: float, scale: Tensor, blend: Tensor | None = None
) -> Tensor:
    """y = C G^-1 (s M G^-1)^K q for one token: query `[B, H, R]` -> `[B, H, P]`; blend `[B, H, K + 1]` are the weights of the
    powers."""
    gram = state.gram + ridge * torch.eye(query.shape[-1], dtype=query.dtype, device=query.device)
    xs = [torch.linalg.solve(gram, query)]
    for _ in range(power):
        xs.append(torch.linalg.solve(gram, scale[:, None] * torch.einsum("bhrs,bhs->bhr", state.transition, xs[-1])))
    x = xs[-1] if blend is None else (torch.stack(xs, -1) * blend[..., None, :]).sum(-1)
    return torch.einsum("bhpr,bhr->bhp", state.value_map, x)


def _cut(state: SKAState, starts: Tensor | None, t: int) -> SKAState:
    """Reset the state of the rows in which token t starts a document."""
    if starts is None:
        return state
    go_on = ~starts[:, t]
    return SKAState(*(part * go_on.view(-1, *[1] * (part.dim() - 1)) for part in state))


def _last_of_document(states: list[SKAState], starts: Tensor | None) -> list[SKAState]:
    """The state at the end of each token's document."""
    operators = [states[-1]]
    for t in range(len(states) - 2, -1, -1):
        if starts is None:
            operators.append(operators[-1])
            continue
        ends = starts[:, t + 1]
        operators.append(
            SKAState(
                *(
                    torch.where(ends.view(-1, *[1] * (now.dim() - 1)), now, later)
                    for now, later in zip(states[t], operators[-1], strict=True)
                )
            )
        )
    return operators[::-1]
