"""What one sequence holds in memory while it is decoded, layer by layer, from the config alone."""

from collections.abc import Sequence

from ..models import ModelConfig

FP32 = 4


def state_bytes(config: ModelConfig, layers: Sequence[str], context: int) -> int:
    """Bytes in fp32 of one sequence's state after `context` tokens, for the mixers `layers` at the width of `config`.

    SKA holds the sums `(Gs, M, C, z_last)`: `2 r^2 + P r + r` numbers a head (arXiv 2605.06997 §3.2); Mamba-2 its state
    and the last inputs of its convolution; attention a key and a value of every token.
    """
    return FP32 * sum(_numbers(config, kind, context) for kind in layers)


def _numbers(config: ModelConfig, kind: str, context: int) -> int:
    if kind == "attention":
        return 2 * config.d_model * context
    if kind == "ska":
        heads, rank = config.ska.num_heads, config.ska.rank
        return heads * (2 * rank**2 + rank) + config.d_model * rank
    mamba2 = config.mamba2
    inner = mamba2.expand * config.d_model
    convolved = inner + 2 * mamba2.ngroups * mamba2.d_state
    return inner * mamba2.d_state + (mamba2.d_conv - 1) * convolved
