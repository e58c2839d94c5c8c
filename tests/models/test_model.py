"""Causality, documents, determinism, and every option of the layers."""

import math

import pytest
import torch
import torch.nn.functional as F

from echo_lm.models import build_model, language_model_loss, parameter_groups, preset
from echo_lm.models.feedforward import KoopmanMLP
from echo_lm.models.mixers.ska import longest_key

FAMILIES = ["echo-1m", "mamba2-1m", "hybrid-1m", "transformer-1m", "mamba2-ska-swiglu-1m", "paper-1m-l2"]
FAMILIES += ["gated-deltanet-1m", "mesanet-1m"]


def tokens_of(batch, length, seed=0):
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def changed_by(model, tokens, t):
    """Positions whose logits change with token t."""
    other = tokens.clone()
    other[:, t] = (other[:, t] + 1) % 50
    with torch.no_grad():
        return (model(tokens) != model(other)).any(-1)[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_token_sees_a_later_one(name, random_model):
    model = random_model(name)
    for t in (0, 63, 64, 99, 129):
        changed = changed_by(model, tokens_of(1, 130), t)
        assert not changed[:t].any()
        assert changed[t]


def test_sequence_max_sees_later_tokens(random_model):
    """Why it is refused unless `allow_future_leak` is set."""
    model = random_model("paper-1m-sequence-max")
    assert any(changed_by(model, tokens_of(1, 130), t)[65:t].any() for t in range(100, 130, 3))


@pytest.mark.parametrize("name", [*FAMILIES, "paper-1m-sequence-max"])
def test_documents_in_a_row_are_read_as_if_alone(name, random_model):
    model = random_model(name).double()
    tokens = tokens_of(2, 100)
    with torch.no_grad():
        packed = model(tokens, cu_seqlens=torch.tensor([0, 1, 30, 64, 100, 133, 200], dtype=torch.int32))
        if name.startswith("paper"):  # the chunk grid is that of the row, so a document alone stands elsewhere on it
            tokens[0, :30] = tokens_of(1, 30, seed=1)
            other = model(tokens, cu_seqlens=torch.tensor([0, 1, 30, 64, 100, 133, 200]))
            torch.testing.assert_close(other[0, 30:], packed[0, 30:])
            return
        for row, first, last in ((0, 0, 1), (0, 1, 30), (0, 64, 100), (1, 0, 33), (1, 33, 100)):
            alone = model(tokens[row : row + 1, first:last])[0]
            torch.testing.assert_close(packed[row, first:last], alone, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_gets_a_gradient(name, random_model):
    model = random_model(name)
    tokens = tokens_of(2, 140)
    total, count = language_model_loss(model(tokens), tokens, torch.ones(2, 140))
    (total / count).backward()
    silent = [key for key, weight in model.named_parameters() if weight.grad is None or weight.grad.abs().max() == 0]
    assert silent == []


def test_logits_at_chosen_positions(random_model):
    model = random_model("echo-1m")
    tokens, at = tokens_of(2, 30), torch.rand(2, 30, generator=torch.Generator().manual_seed(1)) < 0.3
    torch.testing.assert_close(model(tokens, logits_to_keep=at), model(tokens)[at])


def test_weights_depend_on_config_and_seed_alone():
    config = preset("echo-1m", vocab_size=50)
    before = torch.get_rng_state()
    first = build_model(config, seed=1)
    torch.rand(7)
    second = build_model(config, seed=1)
    third = build_model(config, seed=2)
    torch.set_rng_state(before)
    build_model(config, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    states = [model.state_dict() for model in (first, second, third)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["embedding.weight"], states[2]["embedding.weight"])
    assert all(value.isfinite().all() for value in states[0].values())


def test_a_fresh_ska_layer_is_silent_with_orthogonal_keys():
    mixer = build_model(preset("echo-1m", vocab_size=50)).blocks[1].mixer
    assert mixer.out_proj.weight.abs().max() == 0
    torch.testing.assert_close(mixer.k_proj.weight @ mixer.k_proj.weight.T, torch.eye(96))


def test_sequence_max_is_taken_in_each_document():
    k = torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0]])[:, :, None, None] * torch.tensor([[1.0], [-2.0]])
    starts = torch.tensor([[False, False, True, False, False]])
    torch.testing.assert_close(longest_key(k, starts)[0, :, 0, 0], torch.tensor([3.0, 3, 5, 5, 5]))
    torch.testing.assert_close(longest_key(k, None)[0, :, :, 0], torch.tensor([[5.0, 10]]))


@pytest.mark.parametrize("gate", ["hard", "sqrt-sigmoid"])
def test_write_gates_stay_in_range(gate, random_model):
    mixer = random_model("echo-1m", ska={"write_gate": gate}).blocks[1].mixer
    x = 30 * torch.randn(1, 500, 128, generator=torch.Generator().manual_seed(0))
    values = mixer.gate(x)
    assert values.min() >= 0
    assert values.max() <= 1
    assert (values == 0).any() == (gate == "hard")


@pytest.mark.parametrize("gate_input", ["hidden", "token"])
def test_a_token_gate_knows_its_token_alone(gate_input, random_model, monkeypatch):
    """Keys have unit length but for the gate: their lengths are the gates of the pass itself."""
    model = random_model("echo-1m", ska={"gate_input": gate_input}).double()
    layers = [block.mixer for block in model.blocks[1::2]]
    gates = []

    def noted(keys):
        def note(*arguments):
            q, k, v = keys(*arguments)
            gates.append(k.norm(dim=-1))
            return q, k, v

        return note

    for layer in layers:
        monkeypatch.setattr(layer, "keys", noted(layer.keys))
    tokens = tokens_of(1, 100)
    assert changed_by(model, tokens, 30)[99]
    for before, after in zip(gates[:2], gates[2:], strict=True):
        changed = ((before - after).abs() > 1e-9).any(-1)[0].nonzero().flatten().tolist()
        assert changed[0] == 30
        assert (len(changed) > 1) == (gate_input == "hidden")


def test_embeddings_learn_through_a_token_gate(random_model):
    model = random_model("echo-1m", ska={"gate_input": "token"})
    tokens = torch.tensor([[3, 7, 3]])
    x, token = model.embed(tokens)
    assert torch.equal(x, model.embedding(tokens))
    torch.testing.assert_close(token.square().mean(-1), torch.ones(1, 3), rtol=1e-2, atol=0)
    model.blocks[1].mixer.gate_logits(x.detach(), token).sum().backward()
    assert model.embedding.weight.grad.abs().sum(-1).nonzero().flatten().tolist() == [3, 7]
    assert random_model("echo-1m").embed(tokens)[1] is None


@pytest.mark.parametrize("gate_input", ["hidden", "token"])
def test_openness_is_the_mean_of_every_gate(gate_input, random_model):
    """Of both SKA layers, from what each one's gate sees; logits stay as they are, and gates learn from it."""
    ska = dict(mode="exact", chunk_size=None, write_gate="hard", gate_input=gate_input)
    model = random_model("paper-1m-l2", layers=["mamba2", "ska", "ska", "mamba2"], ska=ska)
    tokens, seen = tokens_of(2, 12), []
    for block in model.blocks[1:3]:
        block.mixer_norm.register_forward_hook(lambda _, inputs, output: seen.append(output))
    logits, gate_mean = model(tokens, return_gate_mean=True)
    if gate_input == "token":
        seen = 2 * [F.rms_norm(model.embedding(tokens), (model.config.d_model,), eps=model.config.norm_eps)]
    gates = [block.mixer.gate_proj(x) for block, x in zip(model.blocks[1:3], seen, strict=True)]
    torch.testing.assert_close(gate_mean, torch.stack(gates).sigmoid().mean())
    assert torch.equal(logits, model(tokens))
    gate_mean.backward()
    assert all(block.mixer.gate_proj.bias.grad.abs().min() > 0 for block in model.blocks[1:3])


@pytest.mark.parametrize(("name", "ska"), [("paper-1m-mamba2", {}), ("paper-1m-l2", {"ska": {"write_gate": "none"}})])
def test_a_model_without_write_gates_has_no_openness(name, ska, random_model):
    model = random_model(name, **ska)
    with pytest.raises(ValueError, match="no layer of this model has a write gate"):
        model(tokens_of(1, 4), return_gate_mean=True)
    for block in model.blocks:
        with pytest.raises(ValueError, match=f"{type(block.mixer).__name__} has no write gate"):
            block.mixer.gate_mean(torch.zeros(1, 4, model.config.d_model))


def test_a_token_gate_without_its_token_is_refused(random_model):
    mixer = random_model("echo-1m", ska={"gate_input": "token"}).blocks[1].mixer
    with pytest.raises(ValueError, match="the layer needs `token`"):
        mixer(torch.zeros(1, 3, 128))


@pytest.mark.parametrize("unit", ["disk", "circle"])
def test_koopman_operator_is_stable_and_folds_into_the_readout(unit):
    generator = torch.Generator().manual_seed(0)
    mlp = KoopmanMLP(16, 24, 4, unit=unit)
    with torch.no_grad():
        mlp.pairs.copy_(torch.randn(12, 2, generator=generator))
    a, w = mlp.operator()
    modulus = torch.hypot(a, w)
    assert modulus.max() <= 1 + 1e-6
    assert (modulus.min() < 0.9) == (unit == "disk")
    blocks = torch.block_diag(*(torch.tensor([[p, q], [-q, p]]) for p, q in zip(a.tolist(), w.tolist(), strict=True)))
    x = torch.randn(3, 16, generator=generator)
    want = F.linear(F.linear(F.silu(mlp.lift(x)), blocks), mlp.readout.weight)
    torch.testing.assert_close(mlp(x), want)


def test_the_gate_of_the_koopman_mlp():
    generator = torch.Generator().manual_seed(0)
    gated, plain = KoopmanMLP(16, 24, 4, gated=True), KoopmanMLP(16, 24, 4)
    with torch.no_grad():
        for weight in gated.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        plain.load_state_dict({key: value for key, value in gated.state_dict().items() if key != "gate.weight"})
        x = torch.randn(3, 16, generator=generator)
        assert not torch.allclose(gated(x), 0.5 * plain(x))
        gated.gate.weight.zero_()
        torch.testing.assert_close(gated(x), 0.5 * plain(x))


def test_layer_norm_and_an_untied_head(random_model):
    model = random_model("echo-1m", norm="layer", tie_embeddings=False)
    tokens = tokens_of(1, 20)
    with torch.no_grad():
        before = model(tokens)
        model.head.weight.mul_(2)
        torch.testing.assert_close(model(tokens), 2 * before)


def test_loss_counts_what_the_mask_counts():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 5, 7, generator=generator), torch.randint(0, 7, (2, 5), generator=generator)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1.0]])
    total, count = language_model_loss(logits, labels, mask)
    want = -logits.log_softmax(-1).gather(2, labels[..., None])[..., 0][mask.bool()].sum()
    torch.testing.assert_close(total, want)
    assert count == 4
    at = mask.bool()
    torch.testing.assert_close(language_model_loss(logits[at], labels[at], mask[at])[0], want)
    assert language_model_loss(logits.bfloat16(), labels, mask)[0].dtype == torch.float32


def test_only_linear_maps_decay():
    model = build_model(preset("paper-1m-l2", tie_embeddings=False))
    decaying, still = parameter_groups(model, 0.1)
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.1, 0.0)
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert len(decaying["params"]) + len(still["params"]) == len(names)
    kept = {names[id(weight)].removeprefix("blocks.").split(".", 1)[-1] for weight in still["params"]}
    assert kept == {
        "weight", "mixer_norm.weight", "feedforward_norm.weight", "mixer.dt_bias", "mixer.A_log", "mixer.D",
        "mixer.norm.weight", "mixer.conv1d.weight", "mixer.conv1d.bias", "mixer.eta", "mixer.gamma_logit",
        "mixer.gate_proj.bias",
    }  # fmt: skip
    assert all(weight.dim() == 2 for weight in decaying["params"])
    echo = build_model(preset("echo-1m"), device="meta")
    still = {id(weight) for weight in parameter_groups(echo, 0.1)[1]["params"]}
    assert {id(echo.embedding.weight), id(echo.blocks[0].feedforward.pairs)} <= still


def test_half_precision_runs_forward_and_backward(random_model):
    model = random_model("echo-1m").bfloat16()
    tokens = tokens_of(1, 70)
    logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    language_model_loss(logits, tokens, torch.ones(1, 70))[0].backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_what_inference_keeps_serves_training(random_model):
    model = random_model("transformer-1m")
    tokens = torch.arange(37)[None]  # a length that no other test has: its table of rotations is made here
    with torch.inference_mode():
        expected = model(tokens)
    found = model(tokens)
    found.sum().backward()
    torch.testing.assert_close(found, expected)


def test_parameters_laid_end_to_end_begin_where_their_size_lets_them():
    # 14 heads: vectors of 14, between matrices.
    for group in parameter_groups(build_model(preset("echo-50m"), device="meta"), 0.1):
        first = 0
        for parameter in group["params"]:
            assert first % math.gcd(parameter.numel(), 8) == 0
            first += parameter.numel()
