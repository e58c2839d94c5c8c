"""Parameter groups of the optimizer, with and without weight decay."""

import math

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two parameter groups for AdamW: the weights of linear maps, with weight decay, and all other parameters, without.

    Norms, biases, A_log, D, dt_bias, eta, gamma, gate biases and Koopman pairs carry meaning at values that decay would
    destroy; embeddings and the short convolutions are lookups and filters, not maps. A head counts as an embedding.

    Within a group parameters of a multiple of eight elements come first, then those of four, two and one: laid end to end,
    as ZeRO lays them, each then begins where compiled code that was made for another layer's expects it.

    Returns:
        `[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]`, each parameter that
        requires a gradient once.
    """
    head = getattr(model, "head", None)
    maps = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    trained = sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: -math.gcd(p.numel(), 8))
    return [
        {"params": [p for p in trained if id(p) in maps], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in maps], "weight_decay": 0.0},
    ]
