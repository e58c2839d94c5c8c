"""What a config costs, as pure functions: FLOPs, bytes of state, activations, memory of a GPU. Nothing is built.

A multiply-add counts as 2 FLOPs. Training costs three times the forward pass.
"""

from typing import NamedTuple

from .config import MixerKind, ModelConfig
from .parameters import FEEDFORWARD_MATRICES, count_parameters, mixer_parameters
from .presets import preset, preset_names

GIB = 2**30


def forward_flops(config: ModelConfig, length: int) -> float:
    """FLOPs a token of a parallel forward pass over rows of `length` tokens, logits included."""
    per_block = sum(_mixer_flops(config, kind, length) + _feedforward_flops(config) for kind in config.layers)
    return per_block + 2 * config.d_model * config.vocab_size


def training_flops(config: ModelConfig, length: int) -> float:
    """FLOPs a token of forward and backward over rows of `length` tokens."""
    return 3 * forward_flops(config, length)


def decode_flops(config: ModelConfig, context: int) -> float:
    """FLOPs of one decoding step after `context` tokens; only attention depends on it."""
    per_block = sum(_decode_flops(config, kind, context) + _feedforward_flops(config) for kind in config.layers)
    return per_block + 2 * config.d_model * config.vocab_size


def state_bytes(config: ModelConfig, context: int, *, bytes_per_number: int = 4) -> int:
    """Bytes that one sequence carries from token to token after `context` tokens: what `Cache.nbytes` measures.

    SKA and the Mamba-2 scan state are always fp32; `bytes_per_number` is that of the weights, which the convolution's
    and the attention's entries follow.
    """
    return sum(_layer_state_bytes(config, kind, context, bytes_per_number) for kind in config.layers)


def activation_bytes(config: ModelConfig, batch: int, length: int, *, bytes_per_number: int = 2) -> int:
    """An estimate of what the backward pass keeps, without checkpointing: good to a factor of two, for choosing a
    batch."""
    tokens = batch * length
    numbers = sum(_kept_numbers(config, kind) for kind in config.layers) + config.d_model
    logits = 8 * config.vocab_size  # fp32, and their gradient
    return tokens * (numbers * bytes_per_number + logits)


def training_bytes_per_gpu(config: ModelConfig, *, zero_stage: int, world_size: int) -> float:
    """Weights, gradients and AdamW's state of a GPU in mixed precision (arXiv 1910.02054 §3), activations apart.

    Raises:
        ValueError: no such stage.
    """
    if zero_stage not in (0, 1, 2, 3) or world_size < 1:
        raise ValueError(f"zero_stage must be 0 to 3 and world_size at least 1, not {zero_stage} and {world_size}")
    parts = (12, 2, 2)  # fp32 weight and two moments; bf16 gradient; bf16 weight
    share = [world_size if zero_stage > i else 1 for i in range(3)]
    return count_parameters(config).total * sum(part / by for part, by in zip(parts, share, strict=True))


class SegmentMessage(NamedTuple):
    """Bytes of one rank's part in a layer's two collectives (`kernels/sequence.py`). On a ring of `world` ranks each
    rank passes on `world - 1` parts."""

    forward: int
    backward: int


def segment_messages(
    config: ModelConfig, length: int, *, batch: int = 1, bytes_per_number: int = 4
) -> list[SegmentMessage]:
    """What sequence parallelism sends, layer by layer, for segments of `length` tokens of `batch` rows.

    SKA: forward 2 R^2 + P R + 2 R numbers a head (value lag: + P), backward 2 R^2 + P R + R. Mamba-2 with inner width I
    and C = I + 2 G N channels: forward I N + H + (W - 1) (C + I + G N + H), backward I N + (W - 1) C. Both send fp32 at
    least, and the segment's length as one more number. Attention: keys and values, 2 d numbers a token as wide as the
    activations, their gradients in fp32.
    """
    return [_segment_message(config, kind, length, batch, bytes_per_number) for kind in config.layers]


class ModelRow(NamedTuple):
    """One line of the table of models. Counts are numbers, sizes bytes."""

    name: str
    d_model: int
    num_layers: int
    mixers: str
    feedforward: str
    non_embedding: int
    total: int
    training_flops_per_token: float
    decode_flops: float
    state_bytes: int
    state_bytes_at_length: int
    activation_bytes: int
    gpu_bytes: float


def model_table(
    names: list[str] | None = None,
    *,
    length: int = 2048,
    context: int = 131_072,
    vocab_size: int | None = None,
    zero_stage: int = 1,
    world_size: int = 8,
) -> list[ModelRow]:
    """The table that `echo-lm models` prints.

    Args:
        names: presets; default: all.
        length: tokens of a training row; FLOPs, activations (of one row) and `state_bytes` are taken there.
        context: tokens decoded before `state_bytes_at_length`.
        vocab_size: default: the preset's.
        zero_stage, world_size: of `gpu_bytes`.

    Raises:
        UserError: a name is unknown.
    """
    overrides = {} if vocab_size is None else {"vocab_size": vocab_size}
    rows = []
    for name in preset_names() if names is None else names:
        config = preset(name, **overrides)
        count = count_parameters(config)
        mixers = [
            f"{config.layers.count(kind)} {kind}" for kind in ("mamba2", "ska", "attention") if kind in config.layers
        ]
        rows.append(
            ModelRow(
                name,
                config.d_model,
                len(config.layers),
                " + ".join(mixers),
                f"{config.feedforward.kind} {config.feedforward.width}",
                count.non_embedding,
                count.total,
                training_flops(config, length),
                decode_flops(config, length),
                state_bytes(config, length),
                state_bytes(config, context),
                activation_bytes(config, 1, length),
                training_bytes_per_gpu(config, zero_stage=zero_stage, world_size=world_size),
            )
        )
    return rows


def _feedforward_flops(config: ModelConfig) -> float:
    return 2 * FEEDFORWARD_MATRICES[config.feedforward.kind] * config.d_model * config.feedforward.width


def _mixer_flops(config: ModelConfig, kind: MixerKind, length: int) -> float:
    """Forward FLOPs a token of one mixer: its matrices, then what lies between them."""
    matrices = 2 * mixer_parameters(config, kind)
    d = config.d_model
    if kind == "attention":
        return matrices + 4 * d * (length + 1) / 2
    if kind == "ska":
        heads, rank, width = config.ska.num_heads, config.ska.rank, d // config.ska.num_heads
        chunk = min(length, config.ska.grid)
        sums = 2 * rank * (2 * rank + width)
        factor = 2 * rank**3 / chunk  # Cholesky, its inverse
        solve, pairs = 2 * rank * rank, 0
        if config.ska.mode == "exact":
            factor += (
                2 * rank * rank + 2 * chunk * rank + chunk * chunk / 3 + chunk * rank
            )  # Z G^-1, its Gram, its factor, W
            solve, pairs = solve + 4 * chunk * rank, 4 * chunk * rank
        filters = config.ska.power * (2 * rank * rank + pairs + solve)
        read = 2 * rank * width + (2 * chunk * (rank + width) if config.ska.mode == "exact" else 0)
        return matrices + heads * (sums + factor + solve + filters + read)
    mamba = config.mamba2
    # Kernels choose their own chunks; longer ones do more work for the same result, which is not counted here.
    inner, chunk = mamba.expand * d, min(length, 64)
    pairs = 2 * chunk * (mamba.ngroups * mamba.d_state + inner)
    return matrices + pairs + 4 * inner * mamba.d_state


def _decode_flops(config: ModelConfig, kind: MixerKind, context: int) -> float:
    matrices = 2 * mixer_parameters(config, kind)
    d = config.d_model
    if kind == "attention":
        return matrices + 4 * d * (context + 1)
    if kind == "mamba2":
        return matrices + 5 * config.mamba2.expand * d * config.mamba2.d_state
    heads, rank, width = config.ska.num_heads, config.ska.rank, d // config.ska.num_heads
    write = 2 * rank * (2 * rank + width) + (9 * rank * rank if config.ska.mode == "exact" else 0)
    read = 2 * rank * rank * (1 + 2 * config.ska.power) + 2 * rank * width
    return matrices + heads * (write + read)


def _layer_state_bytes(config: ModelConfig, kind: MixerKind, context: int, bytes_per_number: int) -> int:
    d = config.d_model
    if kind == "attention":
        return context * (2 * d * bytes_per_number + 1) + 8  # keys, values and a padding flag; the position
    if kind == "mamba2":
        mamba = config.mamba2
        channels = mamba.expand * d + 2 * mamba.ngroups * mamba.d_state
        return 4 * mamba.expand * d * mamba.d_state + bytes_per_number * (mamba.d_conv - 1) * channels
    ska = config.ska
    rank, width = ska.rank, d // ska.num_heads
    sums = 2 * rank * rank + width * rank + rank
    numbers = sums + rank * rank  # the inverse factor
    if ska.mode == "chunk":
        numbers += sums  # as of the last border of the grid
    if ska.normalization == "sequence-max":
        numbers += 1
    return 4 * ska.num_heads * numbers + (8 if ska.mode == "chunk" else 0)


def _segment_message(config: ModelConfig, kind: MixerKind, length: int, batch: int, number: int) -> SegmentMessage:
    d, wide = config.d_model, max(4, number)
    if kind == "attention":
        numbers = 2 * d * batch * length
        return SegmentMessage(number * numbers, wide * numbers)
    if kind == "ska":
        heads, rank, width = config.ska.num_heads, config.ska.rank, d // config.ska.num_heads
        sums = 2 * rank * rank + width * rank
        forward = heads * (sums + 2 * rank + (width if config.ska.value_lag else 0))
        backward = heads * (sums + rank)
    else:
        mamba = config.mamba2
        inner, keys = mamba.expand * d, mamba.ngroups * mamba.d_state
        heads, channels, reach = inner // mamba.headdim, inner + 2 * keys, mamba.d_conv - 1
        forward = inner * mamba.d_state + heads + reach * (channels + inner + keys + heads)
        backward = inner * mamba.d_state + reach * channels
    return SegmentMessage(wide * (batch * forward + 1), wide * batch * backward)


def _kept_numbers(config: ModelConfig, kind: MixerKind) -> int:
    """Numbers a token that one block keeps for its backward pass."""
    d, width = config.d_model, config.feedforward.width
    feedforward = d + width * {"koopman": 2, "koopman-gated": 5, "swiglu": 4}[config.feedforward.kind]
    if kind == "attention":
        mixer = 5 * d
    elif kind == "mamba2":
        mixer = d + 7 * config.mamba2.expand * d + 6 * config.mamba2.ngroups * config.mamba2.d_state
    else:
        mixer = 4 * d + config.ska.num_heads * config.ska.rank * (6 + config.ska.power)
    return 2 * d + mixer + feedforward
