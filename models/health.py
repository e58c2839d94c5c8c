"""Is SKA alive? A few numbers a layer, cheap enough to log while training.

Language-model loss hardly sees a broken SKA layer; these see it at once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.ska import ska_attention
from .mixers import SKA
from .stack import EchoLM


class LayerHealth(NamedTuple):
    """Attributes:
    layer: index of the block.
    smallest_eigenvalue: lambda_min(G) / ridge, the smallest of all heads and rows; 1: some direction holds no key.
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
    """Run the first `rows` rows of tokens `[B, T]`, each as one document, and look at every SKA layer's final state."""
    x = model.embedding(tokens[:rows])
    report = []
    for layer, block in enumerate(model.blocks):
        if isinstance(block.mixer, SKA):
            report.append(_layer_health(layer, block, x))
        x = block(x)
    return report


def _layer_health(layer: int, block, x: Tensor) -> LayerHealth:
    mixer, normed = block.mixer, block.mixer_norm(x)
    q, k, v = mixer.keys(normed)
    _, state = ska_attention(q, k, v, mode="prefix", ridge=mixer.config.ridge, return_state=True)
    gram = state.gram.double()
    gram.diagonal(dim1=-2, dim2=-1).add_(mixer.config.ridge)
    factor = torch.linalg.cholesky(gram)
    whitened = torch.linalg.solve_triangular(factor, state.transition.double(), upper=False)
    whitened = torch.linalg.solve_triangular(factor.mT, whitened, upper=True, left=False)
    gate = mixer.gate(normed)
    written = mixer(normed)
    return LayerHealth(
        layer,
        torch.linalg.eigvalsh(gram).min().item() / mixer.config.ridge,
        torch.linalg.matrix_norm(whitened, 2).max().item(),
        1.0 if gate is None else gate.mean().item(),
        0.0 if gate is None else (gate == 0).float().mean().item(),
        (written.norm() / (x + written).norm()).item(),
    )
