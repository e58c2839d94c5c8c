"""Parallel forward, prefill and steps are one function; the state has the size that accounting says."""

import pytest
import torch

from echo_lm.models import UserError, generate, prefill, preset, step
from echo_lm.models.accounting import state_bytes
from echo_lm.models.config import SKAConfig
from echo_lm.models.decoding import sample
from echo_lm.models.mixers.ska import SKA

FAMILIES = ["echo-1m", "mamba2-1m", "hybrid-1m", "transformer-1m", "mamba2-ska-swiglu-1m", "paper-1m-l2"]
FAMILIES += ["gated-deltanet-1m", "mesanet-1m"]


def tokens_of(batch, length, seed=0):
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_and_steps_give_the_parallel_logits(name, random_model):
    model = random_model(name)
    tokens = tokens_of(1, 2048)
    with torch.no_grad():
        want = model(tokens)[0]
    logits, cache = prefill(model, tokens[:, :1800])
    worst = (logits[0] - want[1799]).abs().max().item()
    for t in range(1800, 2048):
        logits, cache = step(model, tokens[:, t], cache)
        worst = max(worst, (logits[0] - want[t]).abs().max().item())
    assert worst <= 1e-4
    assert cache.nbytes() == state_bytes(model.config, 2048)


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_alone_give_the_parallel_logits(name, random_model):
    """In float64: with few tokens in the state, fp32 agrees to 3e-4 only (docs/design/models.md, "Decoding")."""
    model = random_model(name).double()
    tokens = tokens_of(2, 150)
    with torch.no_grad():
        want = model(tokens)
    logits, cache = prefill(model, tokens[:, :1])
    for t in range(1, 150):
        logits, cache = step(model, tokens[:, t], cache)
        assert (logits - want[:, t]).abs().max() <= 1e-8


@pytest.mark.parametrize(
    "change",
    [
        dict(power=0, value_lag=True),
        dict(power=2, write_gate="sqrt-sigmoid", learn_gamma=True, gamma=1.2),
        dict(write_gate="none", normalization="none", ridge=1.0),
        dict(gate_input="token"),
        dict(gate_input="token", normalization="none", ridge=1.0),
        dict(gate_input="token", gate_scale="table", context_heads=1),
        dict(gate_input="token", gate_window=2, key_shift=1, power=0),
        dict(gate_input="token", gate_window=3, key_shift=1, value_shift=1, power=2, blend=True, context_heads=1),
        dict(key_shift=1, value_shift=2, power=2, blend=True),
        dict(key_shift=2, write_gate="none", normalization="none", ridge=1.0),
        dict(gate_input="token", gate_window=2, key_shift=1, power=0, two_hop_heads=2),
        dict(key_shift=1, power=0, two_hop_heads=4, write_gate="none"),
    ],
    ids=[
        "lagged",
        "soft gate",
        "raw keys",
        "token gate",
        "token gate, raw keys",
        "heads of two kinds",
        "pairs",
        "all",
        "shifted blend",
        "shifted raw keys",
        "two hops",
        "two hops, no gate",
    ],
)
@pytest.mark.parametrize("mode", ["exact", "chunk"])
def test_every_option_of_ska(change, mode, random_model):
    model = random_model("echo-1m", preset_version=1, ska={**change, "mode": mode, "chunk_size": 16}).double()
    tokens = tokens_of(1, 90)
    with torch.no_grad():
        want = model(tokens)[0]
    logits, cache = prefill(model, tokens[:, :40])
    for t in range(40, 90):
        logits, cache = step(model, tokens[:, t], cache)
        assert (logits[0] - want[t]).abs().max() <= 1e-8


@pytest.mark.parametrize("mode", ["exact", "chunk"])
def test_ska_is_extended_after_steps(mode):
    """On the chunk grid's border, where chunk mode has yet to move the sums that it reads from."""
    steps = 64
    generator = torch.Generator().manual_seed(0)
    mixer = SKA(32, SKAConfig(num_heads=2, rank=8, mode=mode)).double()
    for weight in mixer.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    x = torch.randn(1, steps + 6, 32, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        expected = mixer(x)[:, -1]
        cache = mixer.init_cache(1, x)
        for t in range(steps):
            _, cache = mixer.step(x[:, t], cache)
        _, cache = mixer.extend(x[:, steps:-1], cache, torch.ones(1, 5, dtype=torch.bool))
        y, _ = mixer.step(x[:, -1], cache)
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_unequal_prompts_in_one_batch(name, random_model):
    """Rows of any length, in segments shorter than the prompts, continue as each would alone."""
    model = random_model(name).double()
    tokens, lengths = tokens_of(4, 170), torch.tensor([170, 1, 64, 131])
    logits, cache = prefill(model, tokens, lengths, segment=64)
    following = tokens_of(4, 3, seed=1)
    for t in range(3):
        logits, cache = step(model, following[:, t], cache)
    for row, length in enumerate(lengths.tolist()):
        single = torch.cat((tokens[row, :length], following[row]))[None]
        with torch.no_grad():
            want = model(single)[0, -1]
        assert (logits[row] - want).abs().max() <= 1e-8


def test_sequence_max_is_frozen_at_the_prompts_value(random_model):
    model = random_model("paper-1m-sequence-max")
    tokens = tokens_of(1, 100)
    with torch.no_grad():
        want = model(tokens)[0, -1]
    logits, cache = prefill(model, tokens, segment=64)
    assert (logits[0] - want).abs().max() <= 1e-4
    longest = [entry.longest for entry in cache if hasattr(entry, "longest")]
    _, after = step(model, torch.tensor([3]), cache)
    assert all(
        torch.equal(a, b.longest) for a, b in zip(longest, (e for e in after if hasattr(e, "longest")), strict=True)
    )


def test_long_decoding_does_not_drift(random_model):
    """fp32 against float64 over 3,000 steps of one narrow model; docs/design/models.md gives the figure for 100,000."""
    small = dict(d_model=32, layers=["mamba2", "ska"], ska=dict(num_heads=2, rank=8), feedforward=dict(width=32))
    model = random_model("echo-1m", mamba2=dict(headdim=32), **small)
    double = random_model("echo-1m", mamba2=dict(headdim=32), **small).double()
    tokens = tokens_of(1, 3000)
    logits, cache = prefill(model, tokens[:, :1])
    want, exact = prefill(double, tokens[:, :1])
    for t in range(1, 3000):
        logits, cache = step(model, tokens[:, t], cache)
        want, exact = step(double, tokens[:, t], exact)
    assert ((logits - want).norm() / want.norm()).item() < 1e-3


def test_state_does_not_grow_without_attention(random_model):
    echo, hybrid = random_model("echo-1m"), random_model("hybrid-1m")
    sizes = [[prefill(model, tokens_of(1, length))[1].nbytes() for length in (10, 1500)] for model in (echo, hybrid)]
    assert sizes[0][0] == sizes[0][1]
    assert sizes[1][1] > 10 * sizes[1][0]
    for model, (short, long) in zip((echo, hybrid), sizes, strict=True):
        assert [short, long] == [state_bytes(model.config, length) for length in (10, 1500)]


def test_generate_is_greedy_by_default_and_stops(random_model):
    model = random_model("echo-1m")
    prompts = [[1, 2, 3], [4], list(range(20))]
    results = generate(model, prompts, max_new_tokens=6)
    for prompt, result in zip(prompts, results, strict=True):
        row = list(prompt)
        for token in result:
            with torch.no_grad():
                assert model(torch.tensor([row]))[0, -1].argmax().item() == token
            row.append(token)
    stop = results[0][2]
    stopped = generate(model, prompts, max_new_tokens=6, stop_token=stop)
    assert stopped[0] == results[0][: results[0].index(stop) + 1]
    assert generate(model, prompts, max_new_tokens=0) == [[], [], []]


def test_sampling_draws_from_its_own_generator(random_model):
    model = random_model("echo-1m")
    before = torch.get_rng_state()
    runs = [generate(model, [[1, 2]], max_new_tokens=20, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(before, torch.get_rng_state())


def test_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(2000, -1)

    def shares(**options):
        settings = {"temperature": 1.0, "top_k": None, "top_p": None, **options}
        drawn = sample(logits, generator=torch.Generator().manual_seed(0), **settings)
        return torch.bincount(drawn, minlength=4) / len(drawn)

    torch.testing.assert_close(shares(), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.04, rtol=0)
    torch.testing.assert_close(shares(top_k=2), torch.tensor([0.625, 0.375, 0, 0]), atol=0.04, rtol=0)
    torch.testing.assert_close(shares(top_p=0.7), torch.tensor([0.625, 0.375, 0, 0]), atol=0.04, rtol=0)
    torch.testing.assert_close(shares(top_p=0.01), torch.tensor([1.0, 0, 0, 0]))
    assert shares(temperature=0.1)[0] > 0.97
    assert shares(temperature=0)[0] == 1


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, 50]], {}, "vocabulary of 50"),
        ([[1]], dict(temperature=-1), "temperature"),
        ([[1]], dict(top_p=0), "top_p"),
        ([[1]], dict(top_k=0), "top_k"),
    ],
)
def test_bad_requests_are_one_line(prompts, options, message, random_model):
    with pytest.raises(UserError, match=message) as error:
        generate(random_model("mamba2-1m"), prompts, max_new_tokens=1, **options)
    assert "\n" not in str(error.value)


def test_lengths_and_segments_are_checked(random_model):
    model = random_model("paper-1m-l2")
    with pytest.raises(ValueError, match="lengths"):
        prefill(model, tokens_of(1, 5), torch.tensor([6]))
    with pytest.raises(ValueError, match="segment"):
        prefill(model, tokens_of(1, 5), segment=40)


def test_decoding_in_half_precision_keeps_fp32_sums(random_model):
    model = random_model("echo-1m").bfloat16()
    logits, cache = prefill(model, tokens_of(1, 40))
    assert logits.dtype == torch.bfloat16
    assert cache[1].decode.sums.gram.dtype == cache[0].ssm.dtype == torch.float32
    assert step(model, torch.tensor([1]), cache)[0].dtype == torch.bfloat16
    assert cache.nbytes() == state_bytes(preset("echo-1m"), 40, bytes_per_number=2)
