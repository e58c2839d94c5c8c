"""SKA layers with settings of their own: built, computed, decoded and counted as such; configs without them are as before."""

import pytest
import torch

from echo_lm.models import UserError, build_model, count_parameters, prefill, preset, step
from echo_lm.models.accounting import state_bytes
from echo_lm.models.mixers.ska import SKA

TOKEN = {"gate_input": "token", "gate_scale": "table", "write_gate": "sqrt-sigmoid"}
PAIRS = {"write_gate": "hard", "gate_window": 2, "key_shift": 1, "power": 0}


def ska_mixers(model):
    return [block.mixer for block in model.blocks if isinstance(block.mixer, SKA)]


def test_each_layer_is_the_one_of_a_model_that_has_it_everywhere(random_model):
    """With the same weights the layer of pairs gives what a model of pairs has there, the other what a model without gives."""
    mixed = random_model("echo-1m", ska=TOKEN, ska_layers=[{}, PAIRS])
    pairs, plain = random_model("echo-1m", ska={**TOKEN, **PAIRS}), random_model("echo-1m", ska=TOKEN)
    x, token = torch.randn(2, 2, 40, 128, generator=torch.Generator().manual_seed(0))
    for own, other in zip(ska_mixers(mixed), (ska_mixers(plain)[0], ska_mixers(pairs)[1]), strict=True):
        other.load_state_dict(own.state_dict())
        torch.testing.assert_close(own(x, token=token), other(x, token=token), rtol=0, atol=0)


@pytest.mark.parametrize("layers", [[{}, PAIRS], [PAIRS, {}]])
def test_decoding_goes_on_from_ragged_prompts(layers, random_model):
    model = random_model("echo-1m", ska=TOKEN, ska_layers=layers).double()
    tokens = torch.randint(0, 50, (2, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, cache = prefill(model, tokens, torch.tensor([70, 33]), segment=16)
        logits, cache = step(model, torch.tensor([3, 4]), cache)
        want = model(torch.cat((tokens[1, :33], torch.tensor([4])))[None])[0, -1]
    torch.testing.assert_close(logits[1], want, atol=1e-8, rtol=1e-8)


def test_costs_are_those_of_each_layer():
    mixed = preset("echo-1m", ska=TOKEN, ska_layers=[{}, PAIRS])
    plain, pairs = preset("echo-1m", ska=TOKEN), preset("echo-1m", ska={**TOKEN, **PAIRS})
    assert count_parameters(mixed).total == sum(p.numel() for p in build_model(mixed, device="meta").parameters())
    for cost in (lambda config: count_parameters(config).total, lambda config: state_bytes(config, 10)):
        assert cost(plain) < cost(mixed) < cost(pairs)
        assert 2 * cost(mixed) == cost(plain) + cost(pairs)


def test_configs_without_it_are_stored_as_before():
    plain, mixed = preset("echo-1m"), preset("echo-1m", ska=TOKEN, ska_layers=[{}, PAIRS])
    assert "ska_layers" not in plain.model_dump(mode="json")
    assert "ska_layers" not in plain.identity_dump()
    assert type(mixed).from_dict(mixed.model_dump(mode="json")) == mixed
    assert [ska.power for ska in mixed.ska_sections()] == [1, 0]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([PAIRS], "ska_layers has 1 entries for 2 SKA layers"),
        ([{}, {"powr": 0}], "ska_layers.1: .*power"),
        ([{}, {"gate_scale": "token"}], "ska.gate_scale must be the same"),
        ([{}, {"num_heads": 3}], "ska.num_heads=3 must divide"),
    ],
)
def test_what_does_not_fit_is_said(layers, said):
    with pytest.raises(UserError, match=said):
        preset("echo-1m", ska=TOKEN, ska_layers=layers)
