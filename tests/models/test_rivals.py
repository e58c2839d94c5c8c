"""Gated DeltaNet and MesaNet layers as published, their costs by hand, and what they refuse."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from echo_lm.kernels.rivals import gated_delta_rule, mesa
from echo_lm.models import UserError, build_model, from_pretrained, preset, save_pretrained
from echo_lm.models.accounting import decode_flops, forward_flops, segment_messages, state_bytes, training_flops
from echo_lm.pipeline.config import load_config

RIVALS = ["gated-deltanet", "mesanet"]


def convolved(x, conv):
    """SiLU of torch's own causal convolution."""
    return F.silu(F.conv1d(F.pad(x.mT, (3, 0)), conv.weight, groups=x.shape[-1]).mT)


def published(layer, x):
    """The layer of flash-linear-attention as its code has it, around the reference recurrences."""

    def per_head(y):
        return y.unflatten(-1, (4, -1))

    def unit(y):
        return y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt()

    q, k = (
        unit(per_head(convolved(project(x), conv)))
        for project, conv in ((layer.q_proj, layer.q_conv1d), (layer.k_proj, layer.k_conv1d))
    )
    beta = torch.sigmoid(layer.b_proj(x))
    if layer.kind == "mesanet":
        g, lamb = F.logsigmoid(layer.a_proj(x)), F.softplus(per_head(layer.lambda_params)) + 0.25
        y, _ = mesa(q, k, per_head(layer.v_proj(x)), g, beta, lamb)
        gate = 1
    else:
        v = per_head(convolved(layer.v_proj(x), layer.v_conv1d))
        g = -layer.A_log.exp() * F.softplus(layer.a_proj(x) + layer.dt_bias)
        y, _ = gated_delta_rule(q, k, v, g, beta)
        gate = F.silu(per_head(layer.g_proj(x)))
    normed = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.o_norm.weight
    return layer.o_proj((normed * gate).flatten(-2))


@pytest.mark.parametrize("kind", RIVALS)
def test_layers_are_those_of_the_library(kind, random_model):
    layer = random_model(f"{kind}-1m").double().blocks[0].mixer
    x = torch.randn(2, 33, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), published(layer, x))


def test_starts():
    """Published: step sizes in 0.001 to 0.1 and lambda at 1; decays of MesaNet from a zero bias."""
    delta, mesanet = (build_model(preset(f"{kind}-1m")).blocks[0].mixer for kind in RIVALS)
    steps = F.softplus(delta.dt_bias)
    assert ((steps >= 9.9e-4) & (steps <= 0.101)).all()
    assert (delta.A_log <= 2.78).all()
    torch.testing.assert_close(mesanet._lambda(), torch.ones(4, 32))
    assert not mesanet.a_proj.bias.any()


def test_state_and_flops_by_hand():
    """Four layers of four heads: keys of 24 and values of 48, three inputs of 384 channels; 32 and 32, three of 256."""
    delta, mesanet = (preset(f"{kind}-1m") for kind in RIVALS)
    assert state_bytes(delta, 9) == 4 * 4 * (4 * 24 * 48 + 3 * 384)
    assert state_bytes(mesanet, 9, bytes_per_number=2) == 4 * (4 * 4 * 2 * 32 * 32 + 2 * 3 * 256)
    for config in (delta, mesanet):
        assert decode_flops(config, 10) == decode_flops(config, 10_000)
        assert training_flops(config, 64) == 3 * forward_flops(config, 64)
    steps = {"mesanet": {"cg_steps": 20}}
    product = 2 * 128 * 32 + 4 * 64 * 128
    assert forward_flops(mesanet, 64) - forward_flops(preset("mesanet-1m", mixers=steps), 64) == 4 * 10 * product


def test_flops_against_torchs_counter():
    """The loop has the same products with the state; those within chunks, which only kernels have, are 7% here."""
    config = preset("gated-deltanet-1m", vocab_size=512)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        build_model(config)(torch.zeros(1, 256, dtype=torch.int64))
    assert 1 <= forward_flops(config, 256) * 256 / counter.get_total_flops() <= 1.2


@pytest.mark.parametrize("kind", RIVALS)
def test_a_stored_layer_is_read_again(kind, tmp_path):
    config = preset(f"{kind}-1m", vocab_size=50, mixers={kind: {"num_heads": 2, "head_dim": 16}})
    save_pretrained(build_model(config), tmp_path / "model")
    assert from_pretrained(tmp_path / "model").config == config


@pytest.mark.parametrize("kind", RIVALS)
def test_a_gpu_without_the_library_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    config = preset(f"{kind}-1m", vocab_size=50)
    save_pretrained(build_model(config), tmp_path / "model")
    with pytest.raises(UserError, match=rf"{kind} layers need .* on a GPU: pip install 'echo-lm\[rivals\]'$"):
        build_model(config, device="cuda")
    with pytest.raises(UserError, match=r"echo-lm\[rivals\]"):
        from_pretrained(tmp_path / "model", device="cuda")


@pytest.mark.parametrize("kind", RIVALS)
def test_segments_are_refused_by_name(kind):
    message = f"{kind} layers cannot be trained on segments of sequences: set run.sequence_parallel=1"
    with pytest.raises(UserError, match=message):
        segment_messages(preset(f"{kind}-1m"), 64)
    changes = [f"model.preset={kind}-1m", "run.workers=2", "run.sequence_parallel=2"]
    with pytest.raises(UserError, match=message) as error:
        load_config("smoke", changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gated-deltanet": {"heads": 2}}, "mixers.gated-deltanet: unknown key heads: did you mean 'num_heads'"),
        ({"gated-deltanet": {"head_dim": 512}}, "mixers.gated-deltanet: head_dim"),
    ],
)
def test_wrong_sections_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        preset("gated-deltanet-1m", mixers=options)
    with pytest.raises(UserError, match="layers use 'mesanet', but the section 'mesanet' is missing"):
        preset("gated-deltanet-1m", layers=["mesanet"])
