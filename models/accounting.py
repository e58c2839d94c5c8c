"""Parameters, FLOPs, decoding-state bytes, activation bytes and GPU memory of a model, computed from its config alone.

A multiply-add counts as 2 FLOPs. Training costs three times the forward pass.
"""

from typing import TYPE_CHECKING, NamedTuple

from .config import ModelConfig
from .mixers.registry import SegmentMessage, mixer_class

if TYPE_CHECKING:
    from .mixers.base import SequenceMixer

GIB = 2**30
FEEDFORWARD_MATRICES = {"koopman": 2, "koopman-gated": 3, "swiglu": 3}


class ParameterCount(NamedTuple):
    """Parameter counts of a model; `embedding` includes the head, if it is not tied."""

    embedding: int
    non_embedding: int

    @property
    def total(self) -> int:
        return self.embedding + self.non_embedding


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count the parameters of a model, embeddings separately."""
    d = config.d_model
    norm = d * (2 if config.norm == "layer" else 1)
    block = 2 * norm + feedforward_parameters(config)
    layers = sum(mixer.num_parameters(own) + block for mixer, own in _mixers(config))
    tables = 1 if config.tie_embeddings else 2
    return ParameterCount(tables * config.vocab_size * d, layers + norm)


def feedforward_parameters(config: ModelConfig) -> int:
    """Parameters of one feed-forward."""
    kind, width = config.feedforward.kind, config.feedforward.width
    pairs = 0 if kind == "swiglu" else width  # width / 2 pairs of two numbers
    return FEEDFORWARD_MATRICES[kind] * config.d_model * width + pairs


def forward_flops(config: ModelConfig, length: int) -> float:
    """FLOPs per token of a parallel forward pass over rows of `length` tokens, logits included."""
    per_block = sum(_matrix_flops(own, mixer) + mixer.mixing_flops(own, length) for mixer, own in _mixers(config))
    return per_block + 2 * config.d_model * config.vocab_size


def training_flops(config: ModelConfig, length: int) -> float:
    """FLOPs per token of a forward and backward pass over rows of `length` tokens."""
    return 3 * forward_flops(config, length)


def decode_flops(config: ModelConfig, context: int) -> float:
    """FLOPs of one decoding step after `context` tokens; only attention layers depend on `context`."""
    per_block = sum(
        _matrix_flops(own, mixer) + mixer.mixing_decode_flops(own, context) for mixer, own in _mixers(config)
    )
    return per_block + 2 * config.d_model * config.vocab_size


def state_bytes(config: ModelConfig, context: int, *, bytes_per_number: int = 4) -> int:
    """Bytes of the decoding state (cache) of one sequence after `context` tokens, as measured by `Cache.nbytes`.

    SKA and the Mamba-2 scan state are always fp32; `bytes_per_number` is that of the weights, which the convolution's
    and the attention's entries follow.
    """
    return sum(mixer.state_bytes(own, context, bytes_per_number) for mixer, own in _mixers(config))


def activation_bytes(config: ModelConfig, batch: int, length: int, *, bytes_per_number: int = 2) -> int:
    """Estimated bytes of the activations kept for the backward pass, without activation checkpointing; accurate to a factor of
    two, which suffices to choose a batch size."""
    tokens = batch * length
    d, width = config.d_model, config.feedforward.width
    block = 3 * d + width * {"koopman": 2, "koopman-gated": 5, "swiglu": 4}[config.feedforward.kind]
    numbers = sum(mixer.kept_numbers(own) + block for mixer, own in _mixers(config)) + d
    logits = 8 * config.vocab_size  # fp32, and their gradient
    return tokens * (numbers * bytes_per_number + logits)


def training_bytes_per_gpu(config: ModelConfig, *, zero_stage: int, world_size: int) -> float:
    """Bytes of weights, gradients and AdamW state on each GPU in mixed precision (arXiv 1910.02054 §3), without activations.

    Raises:
        ValueError: no such stage.
    """
    if zero_stage not in (0, 1, 2, 3) or world_size < 1:
        raise ValueError(f"zero_stage must be 0 to 3 and world_size at least 1, not {zero_stage} and {world_size}")
    parts = (12, 2, 2)  # fp32 weight and two moments; bf16 gradient; bf16 weight
    share = [world_size if zero_stage > i else 1 for i in range(3)]
    return count_parameters(config).total * sum(part / by for part, by in zip(parts, share, strict=True))


def segment_messages(
    config: ModelConfig, length: int, *, batch: int = 1, bytes_per_number: int = 4
) -> list[SegmentMessage]:
    """Bytes that each rank contributes to the collectives of sequence parallelism, layer by layer, for `batch` rows in segments
    of `length` tokens.

    Raises:
        UserError: a mixer cannot be trained on segments.
    """
    return [mixer.segment_message(own, length, batch, bytes_per_number) for mixer, own in _mixers(config)]


def _mixers(config: ModelConfig) -> "list[tuple[type[SequenceMixer], ModelConfig]]":
    """The mixer class of each block, with the config that holds the block's own settings."""
    return [(mixer_class(kind), own) for kind, own in zip(config.layers, config.of_layers(), strict=True)]


def _matrix_flops(config: ModelConfig, mixer: "type[SequenceMixer]") -> int:
    """FLOPs per token of the products with weight matrices in a block: those of its mixer and its feed-forward."""
    feedforward = FEEDFORWARD_MATRICES[config.feedforward.kind] * config.d_model * config.feedforward.width
    return 2 * mixer.num_parameters(config) + 2 * feedforward
