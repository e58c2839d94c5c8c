"""The Gated DeltaNet mixer (arXiv 2412.06464), with the parameter names and shapes of the layer in flash-linear-attention."""

import math
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...kernels.rivals import gated_delta_scan
from ...kernels.sequence import SequenceContext
from ...kernels.ssd import causal_convolution
from ..common.config import Config
from ..config import ModelConfig, Positive
from ..initialization import normal_by_fan_in
from ..norm import RMSNorm, at_least_fp32
from .base import SequenceMixer
from .delay import latest
from .registry import SegmentMessage, register
from .rivals import check_library, refuse_segments

# The published starts: step sizes log-uniform in this range, -A uniform from 0, whose logarithm would be infinite, to 16.
DT_RANGE = (1e-3, 1e-1)
A_RANGE = (1e-3, 16.0)


class GatedDeltaNetConfig(Config):
    """Settings of Gated DeltaNet layers; the names are those of flash-linear-attention."""

    num_heads: Positive
    """Number of heads."""
    head_dim: Annotated[int, Field(gt=0, le=256)]
    """Width of a head's keys and queries; as published, `num_heads * head_dim` is three quarters of `d_model`."""
    expand_v: Positive = 2
    """Width of a head's values, as a multiple of `head_dim`."""
    conv_size: Positive = 4
    """Tokens that the causal convolutions of queries, keys and values look at."""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels of the queries, the keys and the values of all heads."""
        keys = self.num_heads * self.head_dim
        return keys, keys, keys * self.expand_v


class GatedDeltaNetCache(NamedTuple):
    """The decoding state of a Gated DeltaNet layer. conv: `[B, conv_size - 1, channels]`, the last inputs of the convolutions;
    state: `[B, H, K, V]`, in fp32."""

    conv: Tensor
    state: Tensor


@register("gated-deltanet")
class GatedDeltaNet(SequenceMixer):
    """The Gated DeltaNet layer, `[B, T, d_model]` -> `[B, T, d_model]`."""

    options = GatedDeltaNetConfig
    reads_borders_on_host = True

    def __init__(self, d_model: int, config: GatedDeltaNetConfig, num_layers: int, *, norm_eps: float = 1e-5):
        super().__init__()
        self.config, self.num_layers = config, num_layers
        keys, _, values = config.widths
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, values, bias=False)
        self.g_proj = nn.Linear(d_model, values, bias=False)
        self.a_proj = nn.Linear(d_model, config.num_heads, bias=False)
        self.b_proj = nn.Linear(d_model, config.num_heads, bias=False)
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            nn.Conv1d(width, width, config.conv_size, groups=width, bias=False) for width in config.widths
        )
        self.A_log = nn.Parameter(torch.empty(config.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.num_heads))
        self.o_norm = RMSNorm(config.head_dim * config.expand_v, norm_eps)
        self.o_proj = nn.Linear(values, d_model, bias=False)

    def forward(self, x: Tensor, *, cu_seqlens: Tensor | None = None, context: SequenceContext | None = None) -> Tensor:
        if context is not None:
            if context.world > 1:
                refuse_segments(self.kind)
            cu_seqlens = context.cu_seqlens
        q, k, v = self._convolve(self._inputs(x), cu_seqlens=cu_seqlens)
        y, _ = gated_delta_scan(q, k, v, *self._gates(x), cu_seqlens=cu_seqlens)
        return self._project_out(y, x)

    @classmethod
    def build(cls, config: ModelConfig) -> "GatedDeltaNet":
        return cls(config.d_model, _settings(config), len(config.layers))

    @classmethod
    def check_device(cls, device: torch.device) -> None:
        check_library(cls.kind, device)

    @staticmethod
    def num_parameters(config: ModelConfig) -> int:
        d, own = config.d_model, _settings(config)
        keys, _, values = own.widths
        maps = d * (2 * keys + 3 * values + 2 * own.num_heads)
        return maps + own.conv_size * sum(own.widths) + 2 * own.num_heads + own.head_dim * own.expand_v

    @staticmethod
    def mixing_flops(config: ModelConfig, length: int) -> float:
        # In chunks of C tokens: K K^T, Q K^T and W take 2 C K each, U and the read within the chunk 2 C V each; the chunk's state
        # takes 2 K V to read, to correct the values and to update.
        own, chunk = _settings(config), min(length, 64)
        keys, _, values = own.widths
        return chunk * (6 * keys + 4 * values) + 6 * values * own.head_dim

    @staticmethod
    def mixing_decode_flops(config: ModelConfig, context: int) -> float:
        own = _settings(config)
        return 7 * own.widths[2] * own.head_dim

    @staticmethod
    def state_bytes(config: ModelConfig, context: int, bytes_per_number: int) -> int:
        own = _settings(config)
        return 4 * own.widths[2] * own.head_dim + bytes_per_number * (own.conv_size - 1) * sum(own.widths)

    @staticmethod
    def segment_message(config: ModelConfig, length: int, batch: int, bytes_per_number: int) -> SegmentMessage:
        refuse_segments("gated-deltanet")

    @staticmethod
    def kept_numbers(config: ModelConfig) -> int:
        """Those of the library's kernels; the loop on the CPU keeps a state for every token."""
        own = _settings(config)
        keys, _, values = own.widths
        return config.d_model + 6 * keys + 5 * values + 64 * own.num_heads

    def init_cache(self, batch: int, like: Tensor) -> GatedDeltaNetCache:
        """The cache of rows without tokens; `like` gives dtype and device."""
        own = self.config
        state = like.new_zeros(batch, own.num_heads, own.head_dim, own.head_dim * own.expand_v)
        return GatedDeltaNetCache(like.new_zeros(batch, own.conv_size - 1, sum(own.widths)), at_least_fp32(state))

    def extend(self, x: Tensor, cache: GatedDeltaNetCache, real: Tensor) -> tuple[Tensor, GatedDeltaNetCache]:
        """Process further tokens `[B, T, d_model]` from a cache; `real` `[B, T]` is False at padding, which stands at row ends."""
        inputs = self._inputs(x)
        decays, beta = (gate * real[..., None] for gate in self._gates(x))
        q, k, v = self._convolve(inputs, state=cache.conv)
        y, state = gated_delta_scan(q, k, v, decays, beta, state=cache.state)
        conv = latest(inputs, self.config.conv_size - 1, cache.conv, real)
        return self._project_out(y, x), GatedDeltaNetCache(conv, state)

    def step(self, x: Tensor, cache: GatedDeltaNetCache) -> tuple[Tensor, GatedDeltaNetCache]:
        """Decode one token per row, `[B, d_model]`."""
        y, cache = self.extend(x[:, None], cache, torch.ones(len(x), 1, dtype=torch.bool, device=x.device))
        return y[:, 0], cache

    def _inputs(self, x: Tensor) -> Tensor:
        """The inputs of the convolutions, `[B, T, channels]`."""
        return torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)

    def _convolve(self, inputs: Tensor, **options: Any) -> list[Tensor]:
        """Queries and keys `[B, T, H, K]` and values `[B, T, H, V]`."""
        weight = torch.cat([conv.weight.squeeze(1) for conv in (self.q_conv1d, self.k_conv1d, self.v_conv1d)])
        parts = causal_convolution(inputs, weight, silu=True, parts=self.config.widths, **options)
        return [part.unflatten(-1, (self.config.num_heads, -1)) for part in parts]

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the decays, and beta, `[B, T, H]`."""
        steps = F.softplus(at_least_fp32(self.a_proj(x)) + at_least_fp32(self.dt_bias))
        return -torch.exp(at_least_fp32(self.A_log)) * steps, at_least_fp32(self.b_proj(x)).sigmoid()

    def _project_out(self, y: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(self.o_norm(y).flatten(-2) * F.silu(self.g_proj(x)))

    def initialize(self, generator: torch.Generator) -> None:
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.a_proj, self.b_proj):
            normal_by_fan_in(layer.weight, generator)
        normal_by_fan_in(self.o_proj.weight, generator, gain=self.num_layers**-0.5)
        bound = self.config.conv_size**-0.5
        for conv in (self.q_conv1d, self.k_conv1d, self.v_conv1d):
            nn.init.uniform_(conv.weight, -bound, bound, generator=generator)
        low, high = map(math.log, DT_RANGE)
        dt = torch.empty_like(self.dt_bias).uniform_(low, high, generator=generator).exp()
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        self.A_log.copy_(torch.empty_like(self.A_log).uniform_(*A_RANGE, generator=generator).log())


def _settings(config: ModelConfig) -> GatedDeltaNetConfig:
    section = config.section("gated-deltanet")
    assert isinstance(section, GatedDeltaNetConfig)
    return section
