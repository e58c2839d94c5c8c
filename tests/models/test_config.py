"""Names, options and mistakes; every preset built on the meta device."""

import pytest
import torch
import yaml

from echo_lm.models import ModelConfig, UserError, build_model, count_parameters, preset, preset_names
from echo_lm.models.presets import FAMILIES, SIZES


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_built_and_counted(name):
    config = preset(name)
    model = build_model(config, device="meta")
    assert config.name == name
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = [model.embedding.weight] + ([] if model.head is None else [model.head.weight])
    embedding = sum(table.numel() for table in tables)
    assert count_parameters(config) == (embedding, total - embedding)


def test_the_ladder_has_all_families_and_sizes():
    assert list(SIZES) == ["1m", "4m", "10m", "25m", "50m", "180m", "370m", "880m", "1.5b", "3b"]
    for size in SIZES:
        counts = [count_parameters(preset(f"{family}-{size}")).non_embedding for family in FAMILIES]
        assert max(counts) / min(counts) < 1.02
    totals = [count_parameters(preset(f"echo-{size}")).total for size in SIZES]
    assert totals == sorted(totals)


def test_default_layouts_begin_and_end_with_mamba2():
    for size in SIZES:
        config = preset(f"echo-{size}")
        assert config.layers[0] == "mamba2"
        assert config.layers[-1] == "mamba2" or config.allow_edge_ska == (size == "1m")
        assert [kind == "ska" for kind in config.layers] == [
            kind == "attention" for kind in preset(f"hybrid-{size}").layers
        ]


def test_the_papers_parameter_counts():
    """50M and 180M by name; see docs/design/models.md for what remains."""
    assert count_parameters(preset("paper-50m-l2")).total / 50e6 == pytest.approx(1, abs=0.01)
    assert count_parameters(preset("paper-180m-l2")).total / 180e6 == pytest.approx(1.04, abs=0.01)
    assert preset("paper-180m-l2").layers.index("ska") == 8
    assert [i for i, kind in enumerate(preset("paper-50m-sequence-max").layers) if kind == "ska"] == [3, 7, 11, 15]


def test_overrides_of_a_section_keep_the_rest():
    config = preset("echo-1m", vocab_size=300, ska={"power": 0, "value_lag": True})
    assert (config.ska.power, config.ska.value_lag, config.ska.rank, config.vocab_size) == (0, True, 24, 300)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("ecko-50m", {}, "did you mean echo-50m"),
        ("echo-1m", dict(vocab=3), "unknown key vocab: did you mean 'vocab_size'"),
        ("echo-1m", dict(ska={"rnk": 3}), "unknown key ska.rnk: did you mean 'rank'"),
        ("echo-1m", dict(d_model="wide"), "d_model"),
        ("echo-1m", dict(d_model=-4), "greater than 0"),
        ("echo-1m", dict(ska={"num_heads": 3}), "must divide d_model"),
        ("hybrid-1m", dict(attention={"num_heads": 3}), "must divide d_model"),
        ("echo-1m", dict(mamba2={"headdim": 48}), "must divide expand"),
        ("echo-1m", dict(ska={"normalization": "sequence-max"}), "allow_future_leak=true"),
        ("echo-1m", dict(ska={"learn_gamma": True}), "gamma"),
        ("paper-1m-sequence-max", dict(ska={"gate_input": "token"}), 'gate_input "token" needs a write gate'),
        (
            "echo-1m",
            dict(ska={"gate_window": 2}),
            'ska.gate_window is of gates that see tokens: set ska.gate_input to "token"',
        ),
        ("echo-1m", dict(ska={"gate_scale": "table"}), "ska.gate_scale is of gates that see tokens"),
        ("echo-1m", dict(ska={"gate_input": "token", "context_heads": 4}), "context_heads=4 must be below"),
        ("echo-1m", dict(ska={"blend": True, "power": 0}), "set ska.power to 1 or more"),
        ("echo-1m", dict(ska=None), "section 'ska' is missing"),
        ("echo-1m", dict(layers=[]), "layers"),
        ("echo-1m", dict(feedforward={"width": 7}), "even"),
        ("echo-4m", dict(layers=["mamba2", "ska"]), "allow_edge_ska=true"),
        ("echo-4m", dict(layers=["ska", "mamba2"]), "allow_edge_ska=true"),
    ],
)
def test_mistakes_are_one_line_that_names_what_would_be_right(name, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        preset(name, **overrides)
    assert "\n" not in str(error.value)


def test_what_the_gate_sees_is_stored_where_it_is_not_the_default():
    """It was added later: a config without it keeps its hash."""
    default, token = preset("echo-1m"), preset("echo-1m", ska={"gate_input": "token"})
    for config in (default, token):
        assert ModelConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert token.model_dump()["ska"] == default.model_dump()["ska"] | {"gate_input": "token"}
    assert "gate_input" not in default.model_dump()["ska"]
    assert default.ska.gate_input == "hidden"
    assert count_parameters(token) == count_parameters(default)
    total = sum(parameter.numel() for parameter in build_model(token, device="meta").parameters())
    assert total == count_parameters(token).total


def test_parameters_and_hashes_of_options_of_november():
    """Each was added later: a config without it keeps its hash, and its parameters are counted."""
    default = preset("echo-1m", preset_version=1)
    assert default.ska.num_heads > 2
    changes = dict(gate_window=3, context_heads=2, key_shift=1, value_shift=1, power=2, blend=True, gate_scale="table")
    changed = preset("echo-1m", ska={"gate_input": "token", **changes})
    assert not set(changes) - {"power"} & set(default.model_dump()["ska"])
    assert ModelConfig.model_validate_json(changed.model_dump_json()) == changed
    total = sum(parameter.numel() for parameter in build_model(changed, device="meta").parameters())
    assert total == count_parameters(changed).total > count_parameters(default).total


def test_meta_models_cost_nothing():
    assert all(parameter.is_meta for parameter in build_model(preset("echo-3b"), device="meta").parameters())
    assert torch.get_default_device().type == "cpu"
