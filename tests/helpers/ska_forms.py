"""Inputs of SKA, and how far its PyTorch forms are from the token loop."""

import torch
import torch.nn.functional as F

from echo_lm.kernels.ska import SKAState, ska_attention

NAMES = ("y", "gram", "transition", "value_map", "last_key", "dq", "dk", "dv", "dscale")
STATE_NAMES = ("dgram", "dtransition", "dvalue_map", "dlast_key")


def relative(a, b):
    return ((a.double() - b).norm() / b.norm().clamp(min=1e-30)).item()


def draw(batch, length, heads, rank, width, *, seed=0, gate=None, state=False, past=9):
    """q, k, v, scale and an entering state of `past` keys, float64; gate multiplies keys and values."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = randn(batch, length, heads, rank), randn(batch, length, heads, rank), randn(batch, length, heads, width)
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    if gate is not None:
        beta = gate(torch.rand(batch, length, heads, 1, generator=generator, dtype=torch.float64))
        k, v = k * beta, v * beta
    scale = 1 + 0.5 * torch.rand(heads, generator=generator, dtype=torch.float64)
    entering = None
    if state:
        z = F.normalize(randn(batch, past, heads, rank), dim=-1)
        gram = torch.einsum("bthr,bths->bhrs", z, z)
        pairs = torch.einsum("bthr,bths->bhrs", z[:, 1:], z[:, :-1])
        entering = SKAState(gram, pairs, randn(batch, heads, width, rank), z[:, -1])
    return q, k, v, scale, entering


def draw_blend(batch, length, heads, power):
    """Convex weights of the reads, float64."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(batch, length, heads, power + 1, generator=generator, dtype=torch.float64).softmax(-1)


def evaluate(inputs, backend, dtype, blend=None, **options):
    """Output, final state and every gradient of a random functional of both."""
    q, k, v, scale, entering = inputs
    leaves = [t.to(dtype).clone().requires_grad_() for t in (q, k, v, scale)]
    state = None if entering is None else SKAState(*(t.to(dtype).clone().requires_grad_() for t in entering))
    if blend is not None:
        options["blend"] = blend.to(dtype).clone().requires_grad_()
    y, final = ska_attention(*leaves[:3], scale=leaves[3], state=state, return_state=True, backend=backend, **options)
    generator = torch.Generator().manual_seed(5)
    loss = 0
    for part in (y, *final):
        loss = loss + (part * torch.randn(part.shape, generator=generator, dtype=torch.float64).to(dtype)).sum()
    wanted = leaves + ([] if state is None else list(state))
    dblend = None
    if blend is not None:
        (dblend,) = torch.autograd.grad(loss, options["blend"], retain_graph=True)
    # materialize_grads: K = 0 uses no scale.
    gradients = list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    if state is not None:
        gradients[4] = gradients[4] + gradients[4].mT  # a symmetric argument: only this much is defined
    found = dict(zip(NAMES + STATE_NAMES, [t.detach() for t in (y, *final, *gradients)], strict=False))
    if blend is not None:
        found["dblend"] = dblend
    return found


def worst(inputs, dtype=torch.float64, **options):
    naive = evaluate(inputs, "naive", torch.float64, **options)
    fast = evaluate(inputs, "torch", dtype, **options)
    assert fast.keys() == naive.keys()
    errors = {name: relative(fast[name], naive[name]) for name in naive if naive[name].abs().max() > 0}
    zeros = [name for name in naive if name not in errors]
    assert all(fast[name].abs().max() == 0 for name in zeros)
    if inputs[0].shape[1] > 16 and options["mode"] != "chunk":  # else there may be nothing to read
        assert {"y", "dq", "dk", "dv"} <= errors.keys()
    name = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    return errors[name], name
