"""A mixer is one file: that of docs/guides/extending.md, loaded from a temporary folder, is built, priced, decoded and stored."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from echo_lm.models import build_model, count_parameters, from_pretrained, prefill, preset, save_pretrained, step
from echo_lm.models.accounting import forward_flops, state_bytes
from echo_lm.models.common.errors import UserError
from echo_lm.models.mixers import registry
from echo_lm.models.table import model_table

PAGE = (Path(__file__).parents[2] / "docs/guides/extending.md").read_text(encoding="utf-8")
LAYERS = ["mamba2", "decaying-mean", "ska", "mamba2"]


@pytest.fixture
def decaying_mean(tmp_path):
    """The mixer of the page, known for the length of a test."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if code.startswith("# decaying_mean.py")]
    (tmp_path / "decaying_mean.py").write_text(code)
    spec = importlib.util.spec_from_file_location("decaying_mean", tmp_path / "decaying_mean.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.DecayingMean
    del registry._CLASSES["decaying-mean"]


def make_config(**options):
    return preset("echo-1m", vocab_size=50, layers=LAYERS, mixers={"decaying-mean": options})


def test_a_mixer_from_a_file_is_built_and_counted(decaying_mean):
    config = make_config(decay=0.5)
    model = build_model(config)
    assert isinstance(model.blocks[1].mixer, decaying_mean)
    assert model.blocks[1].mixer.decay == 0.5
    assert count_parameters(config).total == sum(p.numel() for p in model.parameters())
    plain = preset("echo-1m", vocab_size=50, layers=["mamba2", "mamba2", "ska", "mamba2"])
    assert state_bytes(config, 100) < state_bytes(plain, 100)
    assert forward_flops(config, 200) - forward_flops(config, 100) == pytest.approx(2 * config.d_model * 100)


def test_a_mixer_from_a_file_decodes_what_it_computes_in_parallel(decaying_mean):
    model = build_model(make_config()).double()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(50, (2, 9), generator=generator)
    with torch.no_grad():
        expected = model(tokens)
        logits, cache = prefill(model, tokens[:, :5])
        torch.testing.assert_close(logits, expected[:, 4])
        for t in range(5, 9):
            logits, cache = step(model, tokens[:, t], cache)
            torch.testing.assert_close(logits, expected[:, t])
        documents = model(tokens, cu_seqlens=torch.tensor([0, 4, 9, 18]))
        torch.testing.assert_close(documents[0, 4:], model(tokens[:1, 4:])[0])


def test_a_mixer_from_a_file_is_stored_with_its_section(decaying_mean, tmp_path):
    config = make_config(decay=0.25)
    save_pretrained(build_model(config), tmp_path / "model")
    assert from_pretrained(tmp_path / "model").config == config


def test_without_its_file_the_kind_is_refused_by_name():
    with pytest.raises(UserError, match=r"unknown mixer 'decaying-mean': valid names: mamba2, ska, attention, "):
        make_config()
    with pytest.raises(UserError, match=r"unknown mixer 'mamba3': did you mean 'mamba2'\?"):
        preset("echo-1m", layers=["mamba2", "mamba3", "ska", "mamba2"])


def test_a_wrong_section_is_one_line(decaying_mean):
    with pytest.raises(UserError, match=r"mixers\.decaying-mean: unknown key decoy: did you mean 'decay'\?"):
        make_config(decoy=0.5)
    with pytest.raises(UserError, match="layers use 'decaying-mean', but the section 'decaying-mean' is missing"):
        preset("echo-1m", layers=LAYERS)


def test_a_name_is_taken_once(decaying_mean):
    with pytest.raises(ValueError, match=r"mixer kind 'decaying-mean' is taken by decaying_mean\.DecayingMean"):
        registry.register("decaying-mean")(type("Other", (), {}))


@pytest.mark.parametrize("kind", registry.BUILT_IN)
def test_the_name_of_a_built_in_mixer_is_taken_before_it_is_loaded(kind, monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", {})
    with pytest.raises(
        ValueError, match=rf"mixer kind '{kind}' is taken by echo_lm\.models\.mixers\.{registry.BUILT_IN[kind]}"
    ):
        registry.register(kind)(type("Other", (), {}))
    assert registry._CLASSES == {}


def test_configs_without_other_mixers_are_stored_as_before():
    """The section `mixers` came later: it must not change the identity of older configs."""
    assert "mixers" not in preset("echo-1m").model_dump(mode="json")
    assert [row.name for row in model_table(["echo-1m"])] == ["echo-1m"]
