"""How many parameters a config has, in closed form (a test builds every preset on the meta device and counts)."""

from typing import NamedTuple

from .config import ModelConfig
from .mixers.registry import mixer_class

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
    layers = sum(mixer_class(kind).num_parameters(config) + block for kind in config.layers)
    tables = 1 if config.tie_embeddings else 2
    return ParameterCount(tables * config.vocab_size * d, layers + norm)


def feedforward_parameters(config: ModelConfig) -> int:
    """Parameters of one feed-forward."""
    kind, width = config.feedforward.kind, config.feedforward.width
    pairs = 0 if kind == "swiglu" else width  # width / 2 pairs of two numbers
    return FEEDFORWARD_MATRICES[kind] * config.d_model * width + pairs
