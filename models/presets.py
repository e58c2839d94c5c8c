"""The Echo family by name: `<family>-<size>`, and the paper's own configurations as `paper-<size>-<arm>`.

Models of one size have the same number of non-embedding parameters: the feed-forward is made wider where the mixers are
smaller.
"""

import difflib
from typing import Any, NamedTuple

from .accounting import FEEDFORWARD_MATRICES, count_parameters
from .common.errors import UserError
from .config import ModelConfig

VOCAB_SIZE = 32_000


class Size(NamedTuple):
    """The dimensions of one size of the family. `ska`: the blocks whose mixer is SKA in Echo and attention in the hybrid.
    `width`: of Echo's Koopman MLP."""

    d_model: int
    num_layers: int
    num_heads: int
    rank: int
    d_state: int
    ska: tuple[int, ...]
    width: int


def koopman_width(d_model: int) -> int:
    """The width of the Koopman MLP, 64 ceil((8/3) d / 64) (arXiv 2605.06997 §3.4)."""
    return 64 * -(-8 * d_model // (3 * 64))


# 1m is an M S M S stack with the parameters of the paper's SwiGLU (3 x 384 = 2 x 576). 50m and 180m have the paper's shapes; SKA
# stands in the 3rd, 7th, 11th and 15th of 16 blocks, so that the last block is Mamba-2, as the paper demands. The names of these
# two count the embeddings of a 32,000 vocabulary, those of the others do not.
SIZES = {
    "1m": Size(128, 4, 4, 24, 16, (1, 3), 576),
    "4m": Size(192, 10, 6, 24, 32, (3, 7), koopman_width(192)),
    "10m": Size(320, 9, 5, 48, 64, (3, 6), koopman_width(320)),
    "25m": Size(384, 15, 6, 48, 64, (4, 8, 11), koopman_width(384)),
    "50m": Size(448, 16, 7, 56, 64, (2, 6, 10, 14), koopman_width(448)),
    "180m": Size(768, 24, 12, 48, 128, (8, 16), koopman_width(768)),
    "370m": Size(1024, 31, 16, 48, 128, (8, 16, 23), koopman_width(1024)),
    "880m": Size(1536, 33, 24, 48, 128, (8, 16, 25), koopman_width(1536)),
    "1.5b": Size(2048, 32, 32, 48, 128, (6, 13, 19, 26), koopman_width(2048)),
    "3b": Size(2560, 40, 40, 48, 128, (8, 16, 24, 32), koopman_width(2560)),
}

FAMILIES = ("echo", "mamba2", "hybrid", "transformer", "mamba2-ska-swiglu", "gated-deltanet", "mesanet")


# In version 2 the gate of a token decides on the key and value one position before (both shifts are 1), and queries start with
# the weights of the keys: one model then solves needles, mentions, two hops and many pairs, with fewer bits per byte
# (docs/results/default.md).
LATEST_VERSION = 2
SKA_OPTIONS = {1: {}, 2: {"key_shift": 1, "value_shift": 1, "tied_start": True}}


def _family(family: str, size: str, version: int) -> dict[str, Any]:
    """The config of one family at one size, as a plain dict."""
    shape = SIZES[size]
    special = {"echo": "ska", "mamba2-ska-swiglu": "ska", "hybrid": "attention", "mamba2": "mamba2"}.get(family)
    layers = [special if i in shape.ska else "mamba2" for i in range(shape.num_layers)]
    rivals = _rivals(shape)
    throughout = {"transformer": "attention"} | {kind: kind for kind in rivals}
    if family in throughout:
        layers = [throughout[family]] * shape.num_layers
    values: dict[str, Any] = dict(
        name=f"{family}-{size}",
        vocab_size=VOCAB_SIZE,
        d_model=shape.d_model,
        layers=layers,
        feedforward=dict(kind="koopman", width=shape.width) if family == "echo" else dict(kind="swiglu", width=8),
        mamba2=dict(d_state=shape.d_state) if "mamba2" in layers else None,
        ska=dict(num_heads=shape.num_heads, rank=shape.rank, **SKA_OPTIONS[version]) if "ska" in layers else None,
        attention=dict(num_heads=shape.num_heads) if "attention" in layers else None,
        mixers={family: rivals[family]} if family in rivals else {},
        allow_edge_ska=size == "1m" and "ska" in layers,
    )
    if family != "echo":
        target = count_parameters(preset(f"echo-{size}")).non_embedding
        values["feedforward"]["width"] = matching_width(ModelConfig.from_dict(values), target)
    return values


def _rivals(shape: Size) -> dict[str, dict[str, int]]:
    """The sections of Gated DeltaNet and MesaNet: keys of all heads together are as wide as published, three quarters of `d_model`
    and `d_model`, in as many heads as attention has."""
    heads, width = shape.num_heads, shape.d_model // shape.num_heads
    return {
        "gated-deltanet": dict(num_heads=heads, head_dim=3 * width // 4),
        "mesanet": dict(num_heads=heads, head_dim=width),
    }


def matching_width(config: ModelConfig, target: int) -> int:
    """The feed-forward width, a multiple of 8 apart from the config's, that brings it to `target` non-embedding
    parameters, as near as it gets."""
    column = FEEDFORWARD_MATRICES[config.feedforward.kind] * config.d_model * len(config.layers)
    missing = target - count_parameters(config).non_embedding
    return config.feedforward.width + 8 * round(missing / (8 * column))


def _paper_1m(arm: str) -> dict[str, Any]:
    """The paper's 1M models (App. G): d 128, four layers, SwiGLU, vocabulary 128, untied; the last two mixers are those of the
    arm."""
    special = {"mamba2": "mamba2", "hybrid": "attention"}.get(arm, "ska")
    return dict(
        vocab_size=128,
        d_model=128,
        layers=["mamba2", "mamba2", special, special],
        feedforward=dict(kind="swiglu", width=384),
        mamba2=dict(d_state=16),
        attention=dict(num_heads=4) if special == "attention" else None,
        ska=_paper_ska(arm, 4, 24) if special == "ska" else None,
        tie_embeddings=False,
        allow_edge_ska=special == "ska",
    )


def _paper_large(size: str, arm: str) -> dict[str, Any]:
    """The paper's language models of 50M and 180M parameters (§4)."""
    shape = SIZES[size]
    ska = (3, 7, 11, 15) if size == "50m" else shape.ska  # counted from 0, as written
    return dict(
        vocab_size=VOCAB_SIZE,
        d_model=shape.d_model,
        layers=["ska" if i in ska else "mamba2" for i in range(shape.num_layers)],
        feedforward=dict(kind="koopman", width=shape.width),
        mamba2=dict(d_state=shape.d_state),
        ska=_paper_ska(arm, shape.num_heads, shape.rank),
        allow_edge_ska=size == "50m",
    )


def _paper_ska(arm: str, num_heads: int, rank: int) -> dict[str, Any]:
    """The paper's settings of SKA: chunk-causal, S = 64, K = 2, learned gamma. "sequence-max" is the paper's text, "l2" (with
    gate) its code."""
    text = arm == "sequence-max"
    return dict(
        num_heads=num_heads,
        rank=rank,
        mode="chunk",
        chunk_size=64,
        normalization="sequence-max" if text else "l2",
        write_gate="none" if text else "sqrt-sigmoid",
        power=2,
        gamma=1.25,
        learn_gamma=True,
        allow_future_leak=text,
    )


PAPER = {
    "paper-1m-l2": lambda: _paper_1m("l2"),
    "paper-1m-sequence-max": lambda: _paper_1m("sequence-max"),
    "paper-1m-hybrid": lambda: _paper_1m("hybrid"),
    "paper-1m-mamba2": lambda: _paper_1m("mamba2"),
    "paper-50m-l2": lambda: _paper_large("50m", "l2"),
    "paper-50m-sequence-max": lambda: _paper_large("50m", "sequence-max"),
    "paper-180m-l2": lambda: _paper_large("180m", "l2"),
    "paper-180m-sequence-max": lambda: _paper_large("180m", "sequence-max"),
}


def preset_names() -> list[str]:
    """Every name that `preset` knows, by family and size."""
    return [f"{family}-{size}" for family in FAMILIES for size in SIZES] + list(PAPER)


def preset(name: str, *, preset_version: int = LATEST_VERSION, **overrides: Any) -> ModelConfig:
    """The config of that name.

    Args:
        preset_version: 1 gives what the name meant before 30 November 2026. The paper's configurations have one version.
        overrides: fields of `ModelConfig` to set; a dict for a section, or for one within `mixers`, changes only the fields it
            names, as in `preset("echo-1m", vocab_size=4224, ska={"power": 0, "value_lag": True})`.

    Raises:
        UserError: the name, the version or a field is unknown, or a value does not fit.
    """
    if preset_version not in SKA_OPTIONS:
        raise UserError(f"preset_version is {preset_version!r}: choose one of {', '.join(map(str, SKA_OPTIONS))}")
    if name in PAPER:
        values = dict(PAPER[name](), name=name)
    elif name in preset_names():
        family, _, size = name.rpartition("-")
        values = _family(family, size, preset_version)
    else:
        near = difflib.get_close_matches(name, preset_names(), n=1, cutoff=0.0)
        raise UserError(f"unknown model {name!r}; did you mean {near[0]}?")
    for key, value in overrides.items():
        values[key] = _merged(values.get(key), value)
    return ModelConfig.from_dict(values, where=name)


def _merged(old: Any, new: Any) -> Any:
    """`new`, with what it leaves out of `old` where both are dicts."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}
