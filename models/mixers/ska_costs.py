"""Parameters, FLOPs, state bytes and messages of an SKA layer, as closed forms of its configuration."""

from ..common.errors import UserError
from ..config import ModelConfig, SKAConfig
from .base import SequenceMixer
from .registry import SegmentMessage


def refuse_segments(ska: SKAConfig) -> None:
    """Refuse sequence parallelism to layers that normalise keys by a maximum over the whole row.

    Raises:
        UserError: the layer does so.
    """
    if ska.normalization == "sequence-max":
        raise UserError('ska.normalization "sequence-max" needs whole rows: use "l2", or no sequence parallelism')


def _blend_flops(ska: SKAConfig) -> int:
    """FLOPs per token and head of the weighted sum of the reads at all powers."""
    return 2 * ska.rank * (ska.power + 1) if ska.blend else 0


def _written_width(config: ModelConfig) -> int:
    """Width of what is written per head and token: the value, and for two-hop heads the token's own key."""
    ska = config.ska_settings
    return config.d_model // ska.num_heads + (ska.rank if ska.two_hop_heads else 0)


class SKACosts(SequenceMixer):
    """Base class of the SKA mixer with its costs, which need no weights."""

    @staticmethod
    def num_parameters(config: ModelConfig) -> int:
        d, ska = config.d_model, config.ska_settings
        seen = d * (ska.gate_window * (ska.num_heads - ska.context_heads) + ska.context_heads)
        gate = 0 if ska.write_gate == "none" else seen + ska.num_heads
        gamma = ska.num_heads if ska.learn_gamma else 0
        blend = (d + 1) * ska.num_heads * (ska.power + 1) if ska.blend else 0
        return 2 * d * ska.num_heads * ska.rank + 2 * d * d + gate + gamma + blend + ska.num_heads

    @staticmethod
    def mixing_flops(config: ModelConfig, length: int) -> float:
        ska = config.ska_settings
        rank, width, exact = ska.rank, _written_width(config), ska.mode == "exact"
        chunk = min(length, ska.grid)
        sums = 2 * rank * (2 * rank + width)
        factor = 2 * rank**3 / chunk  # Cholesky, its inverse
        solve, pairs = 2 * rank * rank, 0
        if exact:  # Z G^-1, its Gram, its factor, W
            factor += 2 * rank * rank + 2 * chunk * rank + chunk * chunk / 3 + chunk * rank
            solve, pairs = solve + 4 * chunk * rank, 4 * chunk * rank
        filters = ska.power * (2 * rank * rank + pairs + solve)
        read = 2 * rank * width + (2 * chunk * (rank + width) if exact else 0) + _blend_flops(ska)
        # The second read of two-hop heads is a call of its own, counted with the same width as the first.
        return (ska.num_heads + ska.two_hop_heads) * (sums + factor + solve + filters + read)

    @staticmethod
    def mixing_decode_flops(config: ModelConfig, context: int) -> float:
        ska = config.ska_settings
        rank, width = ska.rank, _written_width(config)
        write = 2 * rank * (2 * rank + width) + (9 * rank * rank if ska.mode == "exact" else 0)
        read = 2 * rank * rank * (1 + 2 * ska.power) + 2 * rank * width + _blend_flops(ska)
        return ska.num_heads * (write + read * (2 if ska.two_hop_heads else 1))

    @staticmethod
    def state_bytes(config: ModelConfig, context: int, bytes_per_number: int) -> int:
        ska = config.ska_settings
        rank, width = ska.rank, _written_width(config)
        sums = 2 * rank * rank + width * rank + rank
        numbers = sums + rank * rank  # the inverse factor
        if ska.mode == "chunk":
            numbers += sums  # as of the last border of the grid
        if ska.normalization == "sequence-max":
            numbers += 1
        recent = ska.key_shift * ska.num_heads * rank + ska.value_shift * config.d_model
        recent += (ska.gate_window - 1) * config.d_model
        sums = 4 * ska.num_heads * numbers + (8 if ska.mode == "chunk" else 0)  # always fp32
        return sums + recent * bytes_per_number

    @staticmethod
    def segment_message(config: ModelConfig, length: int, batch: int, bytes_per_number: int) -> SegmentMessage:
        """Forward 2 R^2 + P R + 2 R numbers a head (value lag: + P) and the segment's length, backward 2 R^2 + P R + R, in
        fp32 at least. A layer with shifts or a gate window also sends its last keys and values, and the last tokens, as wide as
        the activations, their gradients in fp32: messages of their own.

        Raises:
            UserError: keys are normalised by a maximum over the whole row.
        """
        ska, wide = config.ska_settings, max(4, bytes_per_number)
        refuse_segments(ska)
        rank, width = ska.rank, config.d_model // ska.num_heads
        sums = 2 * rank * rank + width * rank
        forward = ska.num_heads * (sums + 2 * rank + (width if ska.value_lag else 0))
        backward = ska.num_heads * (sums + rank)
        recent = max(ska.key_shift, ska.value_shift) * (ska.num_heads * rank + config.d_model)
        recent = batch * (recent + (ska.gate_window - 1) * config.d_model)
        return SegmentMessage(
            wide * (batch * forward + 1) + bytes_per_number * recent, wide * (batch * backward + recent)
        )

    @staticmethod
    def kept_numbers(config: ModelConfig) -> int:
        ska = config.ska_settings
        blend = ska.num_heads * (ska.power + 1) if ska.blend else 0
        return 4 * config.d_model + ska.num_heads * ska.rank * (6 + ska.power) + blend
