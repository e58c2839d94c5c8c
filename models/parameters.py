"""How many parameters a config has, in closed form (a test builds every preset on the meta device and counts)."""

from typing import NamedTuple

from .config import MixerKind, ModelConfig

FEEDFORWARD_MATRICES = {"koopman": 2, "koopman-gated": 3, "swiglu": 3}


class ParameterCount(NamedTuple):
    """`embedding` counts the head too, if it is not tied."""

    embedding: int
    non_embedding: int

    @property
    def total(self) -> int:
        return self.embedding + self.non_embedding


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Parameters of a model, embeddings apart."""
    d = config.d_model
    norm = d * (2 if config.norm == "layer" else 1)
    block = 2 * norm + feedforward_parameters(config)
    layers = sum(mixer_parameters(config, kind) + block for kind in config.layers)
    tables = 1 if config.tie_embeddings else 2
    return ParameterCount(tables * config.vocab_size * d, layers + norm)


def feedforward_parameters(config: ModelConfig) -> int:
    """Parameters of one feed-forward."""
    kind, width = config.feedforward.kind, config.feedforward.width
    pairs = 0 if kind == "swiglu" else width  # width / 2 pairs of two numbers
    return FEEDFORWARD_MATRICES[kind] * config.d_model * width + pairs


def mixer_parameters(config: ModelConfig, kind: MixerKind) -> int:
    """Parameters of one mixer."""
    d = config.d_model
    if kind == "attention":
        return 4 * d * d
    if kind == "ska":
        ska = config.ska
        gate = 0 if ska.write_gate == "none" else d * ska.num_heads + ska.num_heads
        gamma = ska.num_heads if ska.learn_gamma else 0
        return 2 * d * ska.num_heads * ska.rank + 2 * d * d + gate + gamma + ska.num_heads
    mamba = config.mamba2
    inner = mamba.expand * d
    heads = inner // mamba.headdim
    channels = inner + 2 * mamba.ngroups * mamba.d_state
    return d * (inner + channels + heads) + channels * (mamba.d_conv + 1) + 3 * heads + inner + inner * d
