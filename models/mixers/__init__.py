"""Sequence mixers of the Echo family."""

from torch import nn

from ..config import MixerKind, ModelConfig
from .attention import Attention
from .mamba2 import Mamba2
from .ska import SKA

__all__ = ["SKA", "Attention", "Mamba2", "make_mixer"]


def make_mixer(config: ModelConfig, kind: MixerKind) -> nn.Module:
    """The mixer of one block."""
    if kind == "mamba2":
        return Mamba2(config.d_model, config.mamba2, len(config.layers))
    if kind == "ska":
        return SKA(config.d_model, config.ska)
    return Attention(config.d_model, config.attention, len(config.layers))
