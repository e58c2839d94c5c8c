"""Health of SKA layers: eigenvalues, norms and gate means of each layer's state, cheap enough to log while training.

A broken SKA layer hardly changes the language-model loss, but these numbers at once.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.ska import ska_attention
from .mixers.ska import SKA
from .model import EchoLM


class LayerHealth(NamedTuple):
    """Health measurements of one SKA layer.

    Attributes:
        layer: index of the block.
        smallest_eigenvalue: lambda_min(G) / ridge, the smallest of all heads and rows; 1: some direction holds no key; below 1:
            the rounding of the fp32 sums is larger than the ridge.
        sigma_max: the largest ||A_w||_2 of all heads and rows, below 1 by construction.
        mean_gate: of the write gate; 1 without one.
        closed_gates: the share of gates that are exactly zero.
        written_share: ||SKA's output|| / ||residual stream after adding it||, over all tokens.
    """

    layer: int
    smallest_eigenvalue: float
    sigma_max: float
    mean_gate: float
    closed_gates: float
    written_share: float


@torch.no_grad()
def ska_health(model: EchoLM, tokens: Tensor, *, rows: int = 2) -> list[LayerHealth]:
    """Run the first `rows` rows of tokens `[B, T]`, each as one document, and measure every SKA layer's final state."""
    x, token = model.embed(tokens[:rows])
    report = []
    for layer, block in enumerate(model.blocks):
        if isinstance(block.mixer, SKA):
            report.append(_layer_health(layer, block, x, token))
        x = block(x, token)
    return report


def _layer_health(layer: int, block, x: Tensor, token: Tensor | None) -> LayerHealth:
    mixer, normed = block.mixer, block.mixer_norm(x)
    q, k, v = mixer.keys(normed, token=token)
    _, state = ska_attention(q, k, v, mode="prefix", ridge=mixer.config.ridge, return_state=True)
    smallest, sigma = _extremes(state.gram.double(), state.transition.double(), mixer.config.ridge)
    gate = mixer.gate(normed, token)
    written = mixer(normed, token=token)
    return LayerHealth(
        layer,
        smallest / mixer.config.ridge,
        sigma,
        1.0 if gate is None else gate.mean().item(),
        0.0 if gate is None else (gate == 0).float().mean().item(),
        (written.norm() / (x + written).norm()).item(),
    )


def _extremes(gram: Tensor, transition: Tensor, ridge: float) -> tuple[float, float]:
    """lambda_min(G) and ||A_w||_2 of sums without ridge `[..., r, r]`, the smallest and the largest; NaN if one is not finite.

    A look must not end a run. Sums of thousands of keys in fp32 can miss what a small ridge adds, and be indefinite by their
    rounding; as the true G is nowhere below the ridge, whitening takes no eigenvalue that is.
    """
    if not (gram.isfinite().all() and transition.isfinite().all()):
        return math.nan, math.nan
    values, vectors = torch.linalg.eigh(gram)
    scale = (values + ridge).clamp(min=ridge).rsqrt().unsqueeze(-1)
    whitened = scale * (vectors.mT @ transition @ vectors) * scale.mT
    return values.min().item() + ridge, torch.linalg.matrix_norm(whitened, 2).max().item()
