"""Accounting against what is counted, measured or known by hand."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from echo_lm.models import build_model, count_parameters, model_table, preset, preset_names, ska_health
from echo_lm.models.accounting import (
    activation_bytes,
    decode_flops,
    forward_flops,
    state_bytes,
    training_bytes_per_gpu,
    training_flops,
)
from echo_lm.models.health import _extremes


@pytest.mark.parametrize("name", ["echo-1m", "mamba2-1m", "hybrid-1m", "transformer-1m", "mamba2-ska-swiglu-1m"])
def test_flops_against_torchs_counter(name):
    """The matrices counted by torch; scans, factorisations and gates lie within the rest."""
    config = preset(name, vocab_size=512)
    model = build_model(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 256, dtype=torch.int64))
    assert forward_flops(config, 256) * 256 == pytest.approx(counter.get_total_flops(), rel=0.15)
    assert training_flops(config, 256) == 3 * forward_flops(config, 256)


def test_attention_alone_pays_for_context():
    for name in preset_names():
        config = preset(name)
        grows = decode_flops(config, 100_000) > decode_flops(config, 1000)
        assert grows == ("attention" in config.layers) == (state_bytes(config, 100_000) > state_bytes(config, 1000))


def test_state_of_the_180m_model_by_hand():
    """Two SKA layers of 12 heads, r = 48, P = 64, which keep a row of keys and values; 22 Mamba-2 layers of 1536 x 128 and
    3 x 1792."""
    ska = 4 * 2 * 12 * (3 * 48 * 48 + 64 * 48 + 48 + 48 + 64)
    mamba = 4 * 22 * (1536 * 128 + 3 * 1792)
    assert state_bytes(preset("echo-180m"), 2048) == ska + mamba


def test_zero_stages_divide_what_they_say():
    config = preset("echo-180m")
    total = count_parameters(config).total
    per_gpu = [training_bytes_per_gpu(config, zero_stage=stage, world_size=8) / total for stage in range(4)]
    assert per_gpu == pytest.approx([16, 5.5, 3.75, 2])
    with pytest.raises(ValueError, match="zero_stage"):
        training_bytes_per_gpu(config, zero_stage=4, world_size=8)


@pytest.mark.parametrize("name", ["echo-1m", "mamba2-1m", "hybrid-1m", "transformer-1m"])
def test_activations_are_estimated_within_a_factor_of_two(name):
    config = preset(name, vocab_size=512)
    model = build_model(config)
    storage_bytes = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storage_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.zeros(2, 256, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    estimate = activation_bytes(config, 2, 256, bytes_per_number=4)
    assert loss.isfinite()
    assert 0.5 <= sum(storage_bytes.values()) / estimate <= 2


def test_table_has_a_row_a_preset():
    rows = model_table()
    assert [row.name for row in rows] == preset_names()
    assert (
        model_table(["echo-1m"], vocab_size=100)[0].total == count_parameters(preset("echo-1m", vocab_size=100)).total
    )


@pytest.mark.parametrize("gate_input", ["hidden", "token"])
def test_health_tells_a_living_layer_from_a_dead_one(gate_input, random_model):
    model = random_model("echo-1m", ska={"gate_input": gate_input})
    tokens = torch.randint(0, 50, (3, 200), generator=torch.Generator().manual_seed(0))
    alive = ska_health(model, tokens)
    assert [layer.layer for layer in alive] == [1, 3]
    for layer in alive:
        assert layer.smallest_eigenvalue >= 1
        assert 0.1 < layer.sigma_max < 1
        assert 0 < layer.mean_gate < 1
        assert 0 <= layer.closed_gates < 1
        assert 0.01 < layer.written_share < 2
    with torch.no_grad():
        model.blocks[1].mixer.gate_proj.bias.fill_(-100)
        model.blocks[3].mixer.out_proj.weight.zero_()
    closed, silent = ska_health(model, tokens)
    assert (closed.mean_gate, closed.closed_gates, closed.written_share) == (0, 1, 0)
    assert closed.smallest_eigenvalue == pytest.approx(1)
    assert silent.written_share == 0
    assert silent.mean_gate > 0


@pytest.mark.filterwarnings("error")
def test_health_of_what_is_damaged_is_a_number_or_nan_and_never_an_error(random_model):
    """A look must not end a run. Sums in fp32 can be indefinite by more than the ridge."""
    model = random_model("echo-1m")
    tokens = torch.randint(0, 50, (1, 200), generator=torch.Generator().manual_seed(0))
    keys = torch.randn(5, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gram, transition = keys.mT @ keys, keys.roll(-1, 0).mT @ keys
    smallest, sigma = _extremes(gram - 0.003 * torch.eye(24), transition, 1e-3)
    assert smallest == pytest.approx(-0.002)
    assert 0.9 < sigma < 1.01
    with torch.no_grad():
        model.blocks[1].mixer.out_proj.weight.fill_(math.nan)
    first, second = ska_health(model, tokens)
    assert 0 < first.sigma_max < 1
    assert math.isnan(first.written_share)
    assert math.isnan(second.sigma_max)
    assert math.isnan(second.smallest_eigenvalue)
