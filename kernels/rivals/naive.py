"""The reference forms of Gated DeltaNet's and MesaNet's recurrences, token by token: slow, in any dtype, on any device."""

import torch
from torch import Tensor


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    state: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gated delta rule (arXiv 2412.06464): S = e^g S, S = S + beta k (v - S^T k)^T, o = S^T q / sqrt(K).

    Args:
        q: `[B, T, H, K]`, of unit length, as k.
        k: `[B, T, H, K]`.
        v: `[B, T, H, V]`.
        g: `[B, T, H]`, logarithm of the decay, at most 0.
        beta: `[B, T, H]`, the share of a key's old value that is overwritten. A token with g and beta 0 leaves no trace (padding).
        state: `[B, H, K, V]`, S before the first token; default zero.
        starts: bool `[B, T]`, the first tokens of documents inside rows.

    Returns:
        o `[B, T, H, V]` and S after the last token.
    """
    s = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]) if state is None else state
    decays, written = _decays(g, starts), beta[..., None] * k
    q = q * q.shape[3] ** -0.5
    outputs = []
    for query, key, write, value, decay in zip(*(x.unbind(1) for x in (q, k, written, v, decays)), strict=True):
        s = s * decay
        error = value - torch.einsum("bhkv,bhk->bhv", s, key)
        s = s + write[..., :, None] * error[..., None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", s, query))
    return torch.stack(outputs, 1), s


def mesa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    lamb: Tensor,
    *,
    state: tuple[Tensor, Tensor] | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The mesa layer (arXiv 2506.05233): G = e^g G + beta k k^T, C = e^g C + beta k v^T, o = C^T (G + diag(lamb))^-1 q.

    The systems are solved exactly. Arguments and results are those of `gated_delta_rule`, and:

    Args:
        lamb: `[H, K]`, positive.
        state: G `[B, H, K, K]` and C `[B, H, K, V]`; default zero.
    """
    if state is None:
        shape = q.shape[0], q.shape[2], q.shape[3]
        state = q.new_zeros(*shape, q.shape[3]), q.new_zeros(*shape, v.shape[3])
    gram, values = state
    decays, written, ridge = _decays(g, starts), beta[..., None] * k, torch.diag_embed(lamb)
    outputs = []
    for query, key, write, value, decay in zip(*(x.unbind(1) for x in (q, k, written, v, decays)), strict=True):
        gram = gram * decay + write[..., :, None] * key[..., None, :]
        values = values * decay + write[..., :, None] * value[..., None, :]
        # Without the check, for which the host would wait for a GPU: the matrix is positive definite.
        solved = torch.linalg.solve_ex(gram + ridge, query, check_errors=False)[0]
        outputs.append(torch.einsum("bhkv,bhk->bhv", values, solved))
    return torch.stack(outputs, 1), (gram, values)


def _decays(g: Tensor, starts: Tensor | None) -> Tensor:
    """The factor of the state at each token, `[B, T, H, 1, 1]`: e^g, and 0 where a document starts."""
    decays = g.exp() if starts is None else g.exp() * ~starts[..., None]
    return decays[..., None, None]
