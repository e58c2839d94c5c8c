"""SKA layers whose queries start with the weights of the keys."""

import pytest
import torch

from echo_lm.models import build_model, preset


def model(*, tied: bool, **ska):
    exact = {"mode": "exact", "chunk_size": None, "power": 1, "gamma": 1.0, "learn_gamma": False}
    values = {"tied_start": tied, "write_gate": "none", "rank": 16, **exact, **ska}
    return build_model(preset("paper-1m-l2", vocab_size=64, ska=values), seed=3)


def layer_of(model):
    return next(block.mixer for block in model.blocks if hasattr(block.mixer, "q_proj"))


def test_only_the_queries_start_elsewhere():
    own, tied = dict(model(tied=False).named_parameters()), dict(model(tied=True).named_parameters())
    changed = {name for name in own if not own[name].equal(tied[name])}
    assert {name.rsplit(".", 2)[-2] for name in changed} == {"q_proj"}
    layer = layer_of(model(tied=True))
    assert layer.q_proj.weight.equal(layer.k_proj.weight)
    assert layer.q_proj.weight is not layer.k_proj.weight, "they part in training"


@pytest.mark.parametrize("shifts", [{}, {"key_shift": 1, "value_shift": 1}])
def test_a_token_that_comes_again_finds_what_followed_it(shifts):
    """Before anything is learned, K = 1 reads the value of the token after the earlier occurrence."""
    tokens = torch.tensor([5, 9, 11, 2, 30, 41, 9])
    right = {}
    for tied in (False, True):
        layer = layer_of(model(tied=tied, **shifts))
        x = torch.randn(64, layer.q_proj.in_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.nn.init.eye_(layer.out_proj.weight)
            read = layer(x[tokens][None])[0, -1]
            values = layer.v_proj(x)
        right[tied] = torch.cosine_similarity(values, read[None], dim=1).argmax().item() == 11
    assert right == {False: False, True: True}


def test_configs_without_it_are_stored_as_before():
    assert "tied_start" not in preset("echo-1m", preset_version=1, vocab_size=64).model_dump(mode="json")["ska"]
