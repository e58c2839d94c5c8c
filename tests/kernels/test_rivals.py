"""The recurrences of Gated DeltaNet and MesaNet against their definitions, in output and all gradients."""

import sys

import pytest
import torch
import torch.nn.functional as F

from echo_lm.kernels.rivals import gated_delta_rule, gated_delta_scan, mesa, mesa_scan
from echo_lm.models.common.errors import not_installed
from tests.helpers.rivals import where_the_library_refuses

BORDERS = [0, 5, 6, 23, 37, 60, 74]  # of two rows of 37 tokens
NAMES = ["q", "k", "v", "g", "beta", "lamb"]


def inputs(batch=2, length=37, heads=2, keys=6, values=8, dtype=torch.float64, device="cpu"):
    """Unit queries and keys, decays and betas as the layers make them."""
    generator = torch.Generator().manual_seed(length)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    made = {
        "q": F.normalize(normal(batch, length, heads, keys), dim=-1),
        "k": F.normalize(normal(batch, length, heads, keys), dim=-1),
        "v": normal(batch, length, heads, values),
        "g": F.logsigmoid(normal(batch, length, heads) + 2),
        "beta": normal(batch, length, heads).sigmoid(),
        "lamb": F.softplus(normal(heads, keys)) + 0.25,
    }
    return {name: x.to(device, dtype).requires_grad_() for name, x in made.items()}


def delta_definition(q, k, v, g, beta, lamb, first):
    """S_t as the sum over tokens s of the product of e^g (I - beta k k^T) after s, applied to beta_s k_s v_s^T."""
    unit, outputs = torch.eye(q.shape[-1], dtype=q.dtype), []
    for t in range(q.shape[1]):
        total, passed = 0.0, unit.expand(*q.shape[:1], *q.shape[2:], -1)
        for s in range(t, -1, -1):
            written = torch.einsum("bh,bhk,bhv->bhkv", beta[:, s], k[:, s], v[:, s])
            inside = (s >= first[:, t])[:, None, None, None]
            total = total + inside * (passed @ written)
            erased = unit - torch.einsum("bh,bhk,bhj->bhkj", beta[:, s], k[:, s], k[:, s])
            passed = passed @ erased * g[:, s, :, None, None].exp()
        outputs.append(torch.einsum("bhkv,bhk->bhv", total, q[:, t]) / q.shape[-1] ** 0.5)
    return torch.stack(outputs, 1)


def mesa_definition(q, k, v, g, beta, lamb, first):
    """Both sums of every token at once, with the weights that decays since token s give to it."""
    position, sums = torch.arange(q.shape[1]), g.cumsum(1)
    seen = (position <= position[:, None]) & (position >= first[:, :, None])
    decays = (sums[:, :, None] - sums[:, None]).masked_fill(~seen[..., None], -torch.inf).exp()
    weights = decays * beta[:, None]
    gram = torch.einsum("btsh,bshk,bshj->bthkj", weights, k, k) + torch.diag_embed(lamb)
    values = torch.einsum("btsh,bshk,bshv->bthkv", weights, k, v)
    return torch.einsum("bthkv,bthkj,bthj->bthv", values, torch.linalg.inv(gram), q)


LOOPS = {
    "gated delta rule": (
        lambda q, k, v, g, beta, lamb, **more: gated_delta_rule(q, k, v, g, beta, **more),
        lambda q, k, v, g, beta, lamb, **more: gated_delta_scan(q, k, v, g, beta, **more),
        delta_definition,
    ),
    "mesa": (mesa, mesa_scan, mesa_definition),
}


def compare(result, expected, given, other, bound):
    """Outputs, and gradients of all inputs for one random direction, relative to the largest."""
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected)
    assert (result.to(expected) - expected).abs().max() <= bound * expected.abs().max()
    (result.to(expected) * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, x in other.items():
        if x.grad is not None:
            error = (given[name].grad.to(x.grad) - x.grad).abs().max() / x.grad.abs().max()
            assert error <= bound, f"{name}: {error:.1e}"


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("borders", [None, BORDERS])
def test_loops_compute_what_is_defined(name, borders):
    loop, _, definition = LOOPS[name]
    given, other = inputs(), inputs()
    starts = torch.zeros(74, dtype=torch.bool)
    starts[BORDERS[1:-1] if borders else []] = True
    starts = starts.view(2, 37)
    first = torch.where(starts, torch.arange(37), 0).cummax(1).values
    result, _ = loop(**given, starts=starts if borders else None)
    compare(result, definition(**other, first=first), given, other, 1e-10)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("borders", [None, BORDERS])
def test_single_precision_against_double(name, borders):
    _, scan, _ = LOOPS[name]
    given, other = inputs(dtype=torch.float32), inputs()
    cu_seqlens = None if borders is None else torch.tensor(borders)
    result, expected = (scan(**x, cu_seqlens=cu_seqlens)[0] for x in (given, other))
    assert result.dtype == torch.float32
    compare(result, expected, given, other, 1e-4)


@pytest.mark.parametrize("name", LOOPS)
def test_rows_continue_from_a_state_and_padding_leaves_none(name):
    _, scan, _ = LOOPS[name]
    given = {key: x.detach() for key, x in inputs().items()}
    rest = {key: x for key, x in given.items() if key == "lamb"}
    expected, last = scan(**given)
    _, state = scan(**{key: x[:, :20] for key, x in given.items() if key not in rest}, **rest)
    padded = {key: F.pad(x[:, 20:], (0, 0) * (x.dim() - 2) + (0, 3)) for key, x in given.items() if key not in rest}
    padded["k"][:, 17:], padded["v"][:, 17:] = 1, 1
    result, after = scan(**padded, **rest, state=state)
    torch.testing.assert_close(result[:, :17], expected[:, 20:])
    torch.testing.assert_close(after, last)


def test_scans_scale_queries_and_keys():
    for _, scan, _ in LOOPS.values():
        given = {key: x.detach() for key, x in inputs().items()}
        scaled = {**given, "q": 3 * given["q"], "k": 0.5 * given["k"]}
        torch.testing.assert_close(scan(**scaled)[0], scan(**given)[0], atol=1e-5, rtol=1e-5)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    scan_module = sys.modules[gated_delta_scan.__module__]
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'echo-lm\[rivals\]'") as error:
        scan_module._library.__wrapped__("gated_delta_rule", "chunk_gated_delta_rule")
    assert str(not_installed(error.value)) == "fla is not installed here: pip install 'echo-lm[rivals]'"


def in_place_of_the_library(asked: list):
    """The library's two operations by the loops, with its arguments; the widths of the heads are noted in `asked`."""

    def unit(x):
        return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()

    def delta(q, k, v, g, beta, *, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel):
        asked.append((k.shape[-1], v.shape[-1]))
        q, k = map(unit, (q, k))
        return gated_delta_rule(q * (scale * k.shape[-1] ** 0.5), k, v, g, beta, state=initial_state)

    def solve(q, k, v, g, beta, lamb, *, h_kk_init, h_kv_init, output_final_state, max_CG_iteration, **_):
        asked.append((k.shape[-1], v.shape[-1]))
        q, k = map(unit, (q, k))
        o, state = mesa(q, k, v, g, beta, lamb, state=None if h_kk_init is None else (h_kk_init, h_kv_init))
        return o, *state

    return {"gated delta rule": delta, "mesa": solve}


@pytest.mark.parametrize(("name", "keys", "values"), [("gated delta rule", 24, 96), ("mesa", 32, 32)])
def test_the_library_gets_heads_of_multiples_of_64(name, keys, values, monkeypatch):
    """Heads of 24 in bf16 ended in an illegal memory access on an H200 (fla-core 0.6, Triton 3.7.1)."""
    _, scan, _ = LOOPS[name]
    module, asked = sys.modules[gated_delta_scan.__module__], []
    first, second = (
        {key: x[:, part] if key != "lamb" else x for key, x in inputs(2, 20, 2, keys, values).items()}
        for part in (slice(0, 11), slice(11, 20))
    )
    expected = [scan(**first)]
    expected.append(scan(**second, state=expected[0][1]))
    monkeypatch.setattr(module, "_by_loop", lambda v: False)
    monkeypatch.setattr(module, "_library", lambda package, operation: in_place_of_the_library(asked)[name])
    found = [scan(**first)]
    found.append(scan(**second, state=found[0][1]))
    assert asked == [(64, 64 * -(-values // 64))] * 2
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "keys", "values"),
    [("gated delta rule", 24, 48), ("gated delta rule", 48, 96), ("mesa", 32, 32), ("mesa", 64, 64)],
)
@pytest.mark.parametrize("borders", [None, [0, 5, 6, 150, 200, 331, 400]])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-2), (torch.bfloat16, 3e-2)])
def test_the_library_agrees_with_the_loops(name, keys, values, borders, dtype, bound):
    """At the presets' widths; the loop in float64 on the CPU. Needs the extra `rivals`."""
    _, scan, _ = LOOPS[name]
    shape = dict(length=200, keys=keys, values=values)
    given = {key: x.detach().to("cuda", dtype if key in "qkv" else torch.float32) for key, x in inputs(**shape).items()}
    other = {key: x.detach().cpu().double().requires_grad_() for key, x in given.items()}
    given = {key: x.requires_grad_() for key, x in given.items()}
    cu_seqlens = None if borders is None else torch.tensor(borders)
    result, _ = scan(**given, cu_seqlens=None if cu_seqlens is None else cu_seqlens.cuda())
    expected, _ = scan(**other, cu_seqlens=cu_seqlens)
    with where_the_library_refuses(name == "gated delta rule"):
        compare(result, expected, given, other, bound)
