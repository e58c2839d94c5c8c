"""The fused kernels of SKA against the token loop: inputs and errors."""

import math

import torch
import torch.nn.functional as F

from echo_lm.kernels.ska import SKAState, ska_attention
from echo_lm.kernels.ska import normalize_and_gate as normalize_and_gate
from echo_lm.models.config import SKAConfig
from echo_lm.models.mixers.ska import SKA

NAMES = ("y", "gram", "transition", "value_map", "last_key", "dq", "dk", "dv", "dscale", "dgram", "dtransition")
NAMES += ("dvalue_map", "dlast_key")


def draw(length, rank, width, *, heads=2, batch=2, seed=0, documents=False, keys="random"):
    """q, k, v, scale, an entering state, borders and the gradients of y and of the final state, in float64.

    keys: "random"; or ill-conditioned and entering with an empty state, so that nothing but the ridge helps: "equal",
    "rank 1" (of all lengths and both signs), "near" (duplicates but for 3%).
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (F.normalize(randn(batch, length, heads, rank), dim=-1) for _ in range(2))
    if keys == "equal":
        k = k[:, :1].expand_as(k)
    elif keys == "rank 1":
        k = k[:, :1] * torch.linspace(-1, 1, length, dtype=torch.float64)[:, None, None]
    elif keys == "near":
        k = F.normalize(k[:, :1] + 0.03 * k, dim=-1)
    v, dy = randn(batch, length, heads, width), randn(batch, length, heads, width)
    scale = torch.rand(heads, generator=generator, dtype=torch.float64) + 0.5
    past = randn(batch, 3 * rank, heads, rank)
    state = SKAState(
        torch.einsum("bthr,bths->bhrs", past, past) / (2 * rank),
        randn(batch, heads, rank, rank) * 0.1,
        randn(batch, heads, width, rank) * 0.1,
        randn(batch, heads, rank) * 0.1,
    )
    if keys != "random":
        state = SKAState(*(torch.zeros_like(part) for part in state))
    borders = None
    if documents:
        inner = torch.rand(batch * length, generator=generator) < 0.05
        inner[0] = True
        inner[length - 1] = inner[length - 2] = True  # a document of one token
        borders = torch.cat((inner.nonzero().squeeze(1), torch.tensor([batch * length]))).to(torch.int32)
    return (q, k, v, scale, *state), borders, (dy, *(randn(*part.shape) for part in state))


def run(inputs, borders, weights, *, backend, dtype, device="cpu", **options):
    """Outputs and gradients, the latter of the gram as dG + dG^T."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kinds = [dtype] * 3 + [wide] * 5
    leaves = [x.to(device, kind).requires_grad_() for x, kind in zip(inputs, kinds, strict=True)]
    q, k, v, scale, *state = leaves
    y, final = ska_attention(
        q,
        k,
        v,
        scale=scale,
        state=SKAState(*state),
        return_state=True,
        cu_seqlens=None if borders is None else borders.to(device),
        backend=backend,
        **options,
    )
    outputs = (y, *final)
    loss = sum((out.double() * w.to(device)).sum() for out, w in zip(outputs, weights, strict=True))
    gradients = list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    gradients[4] = gradients[4] + gradients[4].mT
    return [x.detach().double().cpu() for x in (*outputs, *gradients)]


def relative(a, b):
    """Relative RMS; infinite where a holds a NaN, which no comparison would notice."""
    a, b = (x.detach().double().cpu() for x in (a, b))
    error = float((a - b).norm() / b.norm().clamp(min=1e-12))
    return math.inf if math.isnan(error) else error


def errors(found, wanted):
    named = zip(NAMES, found, wanted, strict=True)
    return {name: relative(a, b) for name, a, b in named if float(b.norm()) > 0}


def assert_as_good(found, loop, floor):
    """Finite, and at most four times as far off as the loop in fp32, or as `floor`."""
    worst = max(found, key=lambda name: found[name] / max(floor, 4 * loop[name]))
    assert math.isfinite(max(found.values())), found
    assert found[worst] <= max(floor, 4 * loop[worst]), (worst, found[worst], loop[worst])


def check_ill_conditioned(mode, dtype, keys, sizes, *, heads, batch, device="cpu", loop="naive"):
    """`loop`: what stands for the loop, in float64 and in fp32. Many heads: the error of one dscale is luck."""
    length, rank, width, chunk = sizes
    inputs, _, weights = draw(length, rank, width, heads=heads, batch=batch, keys=keys)
    inputs = [x.to(dtype).double() for x in inputs[:3]] + list(inputs[3:])
    options = dict(mode=mode, power=1, chunk_size=chunk)
    where = "cpu" if loop == "naive" else device  # small launches are quicker there
    wanted, naive = (
        run(inputs, None, weights, backend=loop, dtype=kind, device=where, **options)
        for kind in (torch.float64, torch.float32)
    )
    found = run(inputs, None, weights, backend="triton", dtype=dtype, device=device, **options)
    assert_as_good(errors(found, wanted), errors(naive, wanted), FLOOR[dtype])


def make_mixer(mode, *, d_model=128, heads=2, rank=48):
    """An SKA layer with every weight random and its gates open."""
    layer = SKA(d_model, SKAConfig(num_heads=heads, rank=rank, mode=mode, gamma=1.25, learn_gamma=True))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return layer


def draw_input(batch=2, length=300, d_model=128):
    return torch.randn(batch, length, d_model, generator=torch.Generator().manual_seed(2))


def through(layer, x, call=None):
    """What the layer, or `call` in its stead, makes of x, and the gradients of x and of every weight, by name."""
    x = x.detach().requires_grad_()
    y = layer(x) if call is None else call(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    names = ["y", "dx", *(name for name, _ in layer.named_parameters())]
    return dict(zip(names, (y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)), strict=True))


def assert_close(found, wanted, bound):
    off = {name: relative(found[name], wanted[name]) for name in wanted}
    worst = max(off, key=off.get)
    assert off[worst] <= bound, (worst, off)


BOUND = {torch.float32: 1e-3, torch.bfloat16: 8e-3}
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 8e-3}  # what rounding alone may do where the loop is exact
