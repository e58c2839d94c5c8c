"""Weights to disk and back, and every way in which a folder can be wrong."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from echo_lm.models import UserError, build_model, from_pretrained, load_state, preset, read_config, save_pretrained

TOKENS = torch.arange(40).view(2, 20)


@pytest.mark.parametrize("name", ["echo-1m", "hybrid-1m", "paper-1m-sequence-max"])
def test_round_trip(name, random_model, tmp_path):
    model = random_model(name)
    save_pretrained(model, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model")
    assert loaded.config == model.config == read_config(tmp_path / "model")
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "modeling_echo_lm.py",
    ]
    trained = {key for key, weight in model.named_parameters() if weight.requires_grad}
    assert {key for key, weight in loaded.named_parameters() if weight.requires_grad} == trained


def test_dtype(random_model, tmp_path):
    model = random_model("echo-1m")
    save_pretrained(model, tmp_path)
    half = from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    save_pretrained(half, tmp_path)
    assert from_pretrained(tmp_path).embedding.weight.dtype == torch.bfloat16


def test_a_consolidated_state_is_saved_and_loaded(random_model, tmp_path):
    model, other = random_model("echo-1m"), random_model("echo-1m", seed=1)
    save_pretrained(model, tmp_path, state_dict=other.state_dict())
    assert torch.equal(from_pretrained(tmp_path)(TOKENS), other(TOKENS))
    load_state(model, other.state_dict())
    assert torch.equal(model(TOKENS), other(TOKENS))


def _edit_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    values["echo"].update(changes)
    (folder / "config.json").write_text(json.dumps(values))


def _edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "not a model config"),
        (lambda f: (f / "config.json").write_text("{}"), 'has no "echo"'),
        (lambda f: _edit_config(f, d_modle=3), "unknown key d_modle: did you mean 'd_model'"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "damaged"),
        (lambda f: _edit_config(f, layers=["mamba2", "ska"]), "which echo-1m does not have"),
        (lambda f: _edit_config(f, layers=["mamba2", "ska"] * 3), "lacks blocks.4"),
        (
            lambda f: _edit_config(f, vocab_size=51),
            r"embedding.weight has shape \[50, 128\], but echo-1m needs \[51, 128\]",
        ),
        (lambda f: _edit_weights(f, lambda t: t.pop("blocks.1.mixer.eta")), "lacks blocks.1.mixer.eta"),
        (lambda f: _edit_weights(f, lambda t: t.update(extra=torch.ones(1))), "holds extra"),
    ],
)
def test_a_bad_folder_is_one_line(damage, message, random_model, tmp_path):
    save_pretrained(random_model("echo-1m"), tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_refused_state_changes_nothing(random_model):
    model, before = random_model("echo-1m"), random_model("echo-1m").state_dict()
    state = random_model("echo-1m", seed=1).state_dict()
    state.pop("blocks.3.mixer.eta")
    with pytest.raises(UserError):
        load_state(model, state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_importing_models_loads_no_transformers():
    code = "import sys, echo_lm.models; sys.exit('transformers' in sys.modules or 'deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_of_mamba_ssm_pass_unchanged():
    import types

    sys.modules.setdefault("selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    from mamba_ssm import Mamba2
    from mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete

    generator = torch.Generator().manual_seed(0)
    theirs = Mamba2(128, d_state=16, headdim=64).double()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    ours = build_model(preset("mamba2-1m", vocab_size=50)).double().blocks[0].mixer
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())

    # Their module's own arithmetic, its kernel replaced by mamba-ssm's minimal listing.
    u = torch.randn(2, 64, 128, generator=generator, dtype=torch.float64)
    z, xbc, dt = theirs.in_proj(u).split([256, 288, 4], -1)
    xbc = theirs.act(theirs.conv1d(xbc.mT).mT[:, :64])
    x, b, c = xbc.split([256, 16, 16], -1)
    dt = torch.nn.functional.softplus(dt + theirs.dt_bias)
    x, b, c = x.unflatten(-1, (4, 64)), *(t[:, :, None].expand(-1, -1, 4, -1) for t in (b, c))
    y, _ = ssd_minimal_discrete(x * dt[..., None], -torch.exp(theirs.A_log) * dt, b, c, 32)
    y = (y + theirs.D[:, None] * x).flatten(-2) * torch.nn.functional.silu(z)
    want = theirs.out_proj(y * torch.rsqrt(y.square().mean(-1, keepdim=True) + theirs.norm.eps) * theirs.norm.weight)
    torch.testing.assert_close(ours(u), want)
