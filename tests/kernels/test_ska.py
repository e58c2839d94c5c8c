"""SKA: every PyTorch form against the token loop, output, states and all gradients."""

from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F

from echo_lm.kernels.sequence import SequenceContext
from echo_lm.kernels.ska import SKAState, ska_attention, ska_step, start_decoding, update_inverse
from tests.helpers.ska_forms import draw, draw_blend, evaluate, relative, worst


@pytest.mark.parametrize("mode", ["exact", "chunk", "prefix"])
@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize(
    ("length", "rank", "width", "power", "size"),
    [
        (1, 8, 16, 1, 16),
        (7, 24, 16, 0, 16),
        (63, 8, 16, 2, 16),
        (64, 24, 64, 1, 64),
        (65, 8, 64, 3, 64),
        (65, 24, 16, 1, 16),
    ],
)
def test_forms_agree_with_the_token_loop(mode, lag, length, rank, width, power, size):
    for state in (False, True):
        inputs = draw(2, length, 2, rank, width, state=state)
        error, name = worst(inputs, mode=mode, power=power, chunk_size=size, value_lag=lag)
        assert error <= 1e-9, name


@pytest.mark.parametrize(("rank", "width", "power", "size"), [(48, 16, 2, 64), (56, 64, 1, 64), (24, 16, 3, 16)])
def test_long_rows(rank, width, power, size):
    error, name = worst(draw(1, 500, 1, rank, width), mode="exact", power=power, chunk_size=size)
    assert error <= 1e-9, name


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "chunk", "prefix"])
@pytest.mark.parametrize("length", [1, 7, 63, 64, 65, 500])
def test_the_whole_grid_of_sizes(mode, length):
    for rank, width, power, size in product((8, 24, 48, 56), (16, 64), range(4), (16, 64)):
        # Of more keys than rank: with fewer, float64 itself is good to 1e-16 cond(G)^2 only, the loop's included.
        inputs = draw(1, length, 1, rank, width, seed=rank + power, state=power % 2 == 1, past=2 * rank)
        error, name = worst(inputs, mode=mode, power=power, chunk_size=size)
        assert error <= 1e-9, (name, rank, width, power, size)


@pytest.mark.parametrize("mode", ["exact", "chunk", "prefix"])
@pytest.mark.parametrize(("length", "power", "lag"), [(1, 1, False), (7, 2, True), (37, 2, False), (65, 3, True)])
def test_a_blend_of_powers_agrees_with_the_token_loop(mode, length, power, lag):
    blend = draw_blend(2, length, 2, power)
    for state, borders in ((False, None), (True, None), (True, torch.tensor([0, 1, length, length + 1, 2 * length]))):
        if borders is not None and length == 1:
            continue
        inputs = draw(2, length, 2, 8, 5, state=state)
        options = dict(mode=mode, power=power, chunk_size=16, value_lag=lag, cu_seqlens=borders, blend=blend)
        error, name = worst(inputs, **options)
        assert error <= 1e-9, name


def test_a_blend_is_the_sum_of_reads_by_their_weights():
    q, k, v, scale, _ = draw(2, 40, 2, 8, 5)
    blend = draw_blend(2, 40, 2, 2)
    reads = [ska_attention(q, k, v, power=j, scale=scale, backend="torch") for j in range(3)]
    want = sum(blend[..., j : j + 1] * read for j, read in enumerate(reads))
    for backend in ("naive", "torch"):
        assert relative(ska_attention(q, k, v, power=2, scale=scale, blend=blend, backend=backend), want) <= 1e-10
    alone = F.one_hot(torch.tensor(1), 3).double().expand(2, 40, 2, 3)
    assert relative(ska_attention(q, k, v, power=2, scale=scale, blend=alone), reads[1]) <= 1e-10


BORDERS = torch.tensor([0, 1, 2, 3, 30, 48, 50, 67, 69, 80, 133, 134], dtype=torch.int32)  # documents of length 1 too


@pytest.mark.parametrize("mode", ["exact", "chunk", "prefix"])
@pytest.mark.parametrize("power", [0, 1, 2, 3])
@pytest.mark.parametrize("lag", [False, True])
def test_documents(mode, power, lag):
    for state in (False, True):
        inputs = draw(2, 67, 2, 8, 5, state=state)
        error, name = worst(inputs, mode=mode, power=power, chunk_size=16, value_lag=lag, cu_seqlens=BORDERS)
        assert error <= 1e-9, name


@pytest.mark.parametrize(
    "gate", [torch.zeros_like, torch.ones_like, torch.round, lambda g: 1e-4 * g], ids=["zero", "one", "both", "tiny"]
)
def test_gates_at_their_extremes(gate):
    inputs = draw(1, 65, 2, 8, 16, gate=gate)
    options = dict(mode="exact", power=1, chunk_size=16)
    if gate is torch.zeros_like:
        fast = evaluate(inputs, "torch", torch.float64, **options)
        assert fast["y"].abs().max() == 0
        assert all(part.isfinite().all() for part in fast.values())
        return
    error, name = worst(inputs, **options)
    assert error <= 1e-9, name


@pytest.mark.parametrize("mode", ["exact", "chunk", "prefix"])
@pytest.mark.parametrize("lag", [False, True])
def test_masked_positions_write_nothing(mode, lag):
    q, k, v, scale, _ = draw(2, 40, 2, 8, 16)
    mask = torch.rand(2, 40, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[:, -3:] = False
    options = dict(mode=mode, power=1, chunk_size=16, scale=scale, value_lag=lag, return_state=True)
    y, state = ska_attention(q, k, v, mask=mask, **options)
    zeroed = ska_attention(q, k * mask[..., None, None], v * mask[..., None, None], **options)
    assert relative(y, zeroed[0]) <= 1e-12
    last = [int(row.nonzero().max()) for row in mask]
    torch.testing.assert_close(state.last_key, torch.stack([k[i, t] for i, t in enumerate(last)]))


def test_padding_leaves_the_state_of_the_real_tokens():
    q, k, v, scale, entering = draw(2, 40, 2, 8, 16, state=True)
    lengths = (40, 0)
    mask = torch.arange(40) < torch.tensor(lengths)[:, None]
    _, state = ska_attention(q, k, v, mask=mask, scale=scale, state=entering, return_state=True)
    _, first = ska_attention(
        q[:1], k[:1], v[:1], scale=scale, state=SKAState(*(s[:1] for s in entering)), return_state=True
    )
    for part, whole, before in zip(state, first, entering, strict=True):
        torch.testing.assert_close(part[:1], whole)
        torch.testing.assert_close(part[1:], before[1:])


@pytest.mark.parametrize("mode", ["exact", "chunk"])
def test_a_row_in_two_pieces_is_the_row(mode):
    q, k, v, scale, _ = draw(2, 96, 2, 8, 16)
    options = dict(mode=mode, power=2, chunk_size=16, scale=scale, return_state=True)
    whole, end = ska_attention(q, k, v, **options)
    first, state = ska_attention(q[:, :48], k[:, :48], v[:, :48], **options)
    second, last = ska_attention(q[:, 48:], k[:, 48:], v[:, 48:], state=state, **options)
    assert relative(torch.cat((first, second), 1), whole) <= 1e-10
    assert all(relative(a, b) <= 1e-12 for a, b in zip(last, end, strict=True))


def test_documents_are_read_as_if_alone():
    q, k, v, scale, _ = draw(1, 50, 2, 8, 16)
    cuts = [0, 1, 13, 14, 37, 50]
    packed = ska_attention(q, k, v, scale=scale, chunk_size=16, cu_seqlens=torch.tensor(cuts))
    alone = [ska_attention(q[:, a:b], k[:, a:b], v[:, a:b], scale=scale) for a, b in pairwise(cuts)]
    assert relative(packed, torch.cat(alone, 1)) <= 1e-10


@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 11, 12, 1500, 4096])], ids=["whole", "documents"])
def test_fp32_at_4096_tokens(cu_seqlens):
    """Against the float64 chunked form, which the tests above tie to the loop (its gradients take 30 s here)."""
    inputs, options = draw(1, 4096, 2, 24, 16), dict(mode="exact", power=1, cu_seqlens=cu_seqlens)
    exact, single = (evaluate(inputs, "torch", dtype, **options) for dtype in (torch.float64, torch.float32))
    for name in exact:
        assert relative(single[name], exact[name]) <= 2e-3, name
    if cu_seqlens is None:
        with torch.no_grad():
            loop = ska_attention(*inputs[:3], scale=inputs[3], backend="naive")
        assert relative(single["y"], loop) <= 2e-3


def test_first_chunk_is_refined_in_fp32():
    """Without the refinement y is off by 2e-4 and the gradients by 3e-3."""
    error, name = worst(draw(2, 64, 4, 24, 32), torch.float32, mode="exact", power=1, chunk_size=64)
    assert error <= 2e-4, name


def test_documents_of_few_keys_keep_their_gradients_in_fp32():
    inputs = draw(1, 53, 1, 24, 16)
    borders = torch.tensor([0, 9, 12, 30, 41, 53])
    error, name = worst(inputs, torch.float32, mode="chunk", power=1, chunk_size=16, cu_seqlens=borders)
    assert error <= 1e-3, name


def test_autocast_leaves_sums_and_solves_in_fp32():
    """In the backward too, also where it is called under autocast."""
    inputs = draw(1, 70, 2, 8, 16)
    plain = evaluate(inputs, "torch", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = evaluate(inputs, "torch", torch.float32)
    assert all(torch.equal(plain[name], cast[name]) for name in ("y", "gram", "transition", "dq"))


@pytest.mark.parametrize("mode", ["exact", "chunk", "prefix"])
def test_gradcheck(mode):
    q, k, v, scale, entering = draw(1, 6, 1, 3, 2, state=True)
    borders = torch.tensor([0, 4, 6])

    def operation(q, k, v, scale, transition, value_map, last_key):
        state = SKAState(entering.gram, transition, value_map, last_key)
        y, final = ska_attention(
            q,
            k,
            v,
            mode=mode,
            power=2,
            scale=scale,
            chunk_size=2,
            ridge=0.1,
            state=state,
            return_state=True,
            cu_seqlens=borders,
            backend="torch",
        )
        return (y, *final)

    leaves = [t.clone().requires_grad_() for t in (q, k, v, scale, *entering[1:])]
    assert torch.autograd.gradcheck(operation, leaves)


@pytest.mark.parametrize("keys", ["random", "alternating"])
def test_the_whitened_operator_is_a_contraction(keys):
    """sigma_max(A_w) <= 1 with gates from 1/79 to 1: what makes the paper's spectral normalisation a no-op."""
    if keys == "random":
        z = F.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
    else:
        z = torch.eye(8, dtype=torch.float64)[torch.arange(200) % 2]
    beta = torch.where(torch.arange(200) % 2 == 0, 1 / 79, 1.0).double()
    z = (z * beta.sqrt()[:, None])[None, :, None]
    _, state = ska_attention(z, z, z, return_state=True)
    factor = torch.linalg.cholesky(state.gram + 1e-3 * torch.eye(8, dtype=torch.float64))
    whitened = torch.linalg.solve_triangular(factor, state.transition, upper=False)
    whitened = torch.linalg.solve_triangular(factor.mT, whitened, upper=True, left=False)
    sigma = torch.linalg.matrix_norm(whitened, 2).item()
    assert 0.01 < sigma <= 1


def test_power_one_reads_the_value_after_the_matching_key():
    keys = torch.eye(8, dtype=torch.float64)[None, :, None]
    values = torch.randn(1, 8, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    query = keys[:, 2:3].expand(-1, 8, -1, -1)
    for power in (0, 1, 2):
        y = ska_attention(query, keys, values, power=power, ridge=1e-9)
        torch.testing.assert_close(y[0, -1, 0], values[0, 2 + power, 0], rtol=1e-6, atol=1e-6)
    y = ska_attention(query, keys, values, power=0, ridge=1e-9, value_lag=True)
    torch.testing.assert_close(y[0, -1, 0], values[0, 3, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["exact", "chunk"])
def test_nothing_depends_on_later_tokens(mode):
    q, k, v, scale, _ = draw(1, 40, 2, 8, 16)
    options = dict(mode=mode, power=2, chunk_size=8, scale=scale)
    y = ska_attention(q, k, v, **options)
    for t in (0, 7, 8, 25, 39):
        other = [x.clone() for x in (q, k, v)]
        for x in other:
            x[:, t] += 1
        changed = (ska_attention(*other, **options) != y).flatten(2).any(-1)[0]
        assert not changed[:t].any()
        assert changed[t:].any()


@pytest.mark.parametrize("mode", ["exact", "chunk"])
@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize("blended", [False, True])
def test_steps_give_what_the_parallel_form_gives(mode, lag, blended):
    blend = draw_blend(2, 60, 2, 2) if blended else None
    q, k, v, scale, _ = draw(2, 60, 2, 8, 16)
    options = dict(power=2, scale=scale, chunk_size=8, value_lag=lag)
    y, final = ska_attention(q, k, v, mode=mode, return_state=True, blend=blend, **options)
    empty = SKAState.zeros(2, 2, 8, 16, dtype=torch.float64)
    chunked = dict(visible=empty, position=torch.zeros(2, dtype=torch.int64)) if mode == "chunk" else {}
    state = start_decoding(empty, ridge=1e-3, **chunked)
    for t in range(60):
        one = ska_step(q[:, t], k[:, t], v[:, t], state, blend=None if blend is None else blend[:, t], **options)
        assert relative(one, y[:, t]) <= 1e-8 or y[:, t].norm() == one.norm() == 0
    assert all(relative(a, b) <= 1e-10 for a, b in zip(state.sums, final, strict=True))


@pytest.mark.parametrize("spread", [1.0, 1e-3], ids=["full rank", "nearly rank 4"])
def test_the_updated_factor_stays_as_good_as_a_fresh_one(spread):
    """Judged by what it solves, in fp32 over 5,000 tokens."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(5000, 24, generator=generator)
    keys[:, 4:] *= spread
    keys = F.normalize(keys, dim=-1)
    inverse = 1e-3**-0.5 * torch.eye(24)
    for key in keys:
        inverse = update_inverse(inverse, key)
    gram = keys.double().T @ keys.double() + 1e-3 * torch.eye(24, dtype=torch.float64)
    fresh = torch.linalg.cholesky(keys.T @ keys + 1e-3 * torch.eye(24))
    query = keys[-1:].T
    exact = torch.linalg.solve(gram, query.double())
    errors = [relative(x, exact) for x in (inverse.T @ (inverse @ query), torch.cholesky_solve(query, fresh))]
    assert errors[0] <= 3 * errors[1] + 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mode="causal"), "mode"),
        (dict(backend="cuda"), "backend"),
        (dict(power=-1), "power"),
        (dict(blend=torch.ones(1, 6, 1, 3)), "blend"),
        (dict(ridge=0.0), "ridge"),
        (dict(chunk_size=0), "chunk_size"),
        (dict(context=SequenceContext(None, 0, 1), cu_seqlens=torch.tensor([0, 6])), "context"),
        (dict(context=SequenceContext(None, 0, 1), mask=torch.ones(1, 6, dtype=torch.bool)), "context"),
        (dict(context=SequenceContext(None, 0, 1), state=SKAState.zeros(1, 2, 3, 4)), "context"),
        (dict(context=SequenceContext(None, 0, 1, torch.tensor([0, 4]))), "cu_seqlens"),
        (dict(scale=torch.ones(3)), "scale"),
        (dict(mask=torch.ones(1, 6)), "mask"),
        (dict(cu_seqlens=torch.tensor([0, 4])), "cu_seqlens"),
        (dict(cu_seqlens=torch.tensor([0, 4, 4, 6])), "cu_seqlens"),
        (dict(cu_seqlens=torch.tensor([0.0, 6.0])), "cu_seqlens"),
        (dict(state=SKAState.zeros(2, 2, 3, 4)), "state.gram"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    q, k, v, _, _ = draw(1, 6, 2, 3, 4)
    with pytest.raises(ValueError, match=message):
        ska_attention(q, k, v, **change)


def test_wrong_shapes_are_named():
    q, k, v, _, _ = draw(1, 6, 2, 3, 4)
    with pytest.raises(ValueError, match=r"\[B, T, H, R\]"):
        ska_attention(q, k[:, :5], v)
