"""Feed-forward layers of the blocks: the Koopman MLP and SwiGLU."""

from torch import nn

from ..config import ModelConfig
from .koopman import KoopmanMLP
from .swiglu import SwiGLU

__all__ = ["KoopmanMLP", "SwiGLU", "make_feedforward"]


def make_feedforward(config: ModelConfig) -> nn.Module:
    """The feed-forward of one block."""
    kind, width = config.feedforward.kind, config.feedforward.width
    if kind == "swiglu":
        return SwiGLU(config.d_model, width, len(config.layers))
    if kind in ("koopman", "koopman-gated"):
        gated = kind == "koopman-gated"
        return KoopmanMLP(config.d_model, width, len(config.layers), unit=config.feedforward.unit, gated=gated)
    raise ValueError(f"unknown feed-forward {kind!r}: koopman, koopman-gated or swiglu")
