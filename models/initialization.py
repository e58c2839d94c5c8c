"""Initial weights, from a private generator: the same seed gives the same model, whatever else has drawn numbers."""

import math

import torch
from torch import Tensor, nn


def normal_by_fan_in(weight: Tensor, generator: torch.Generator, *, gain: float = 1.0) -> None:
    """N(0, gain^2 / (3 fan_in)): the spread of `nn.Linear`'s own start, and GPT's 0.02 at width 833."""
    nn.init.normal_(weight, std=gain / math.sqrt(3 * weight.shape[1]), generator=generator)


def initialize(model: nn.Module, seed: int) -> None:
    """Give every parameter its initial value. Modules that own parameters directly have `initialize(generator)`; a
    `nn.Linear` is its owner's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if start := getattr(module, "initialize", None):
                start(generator)
