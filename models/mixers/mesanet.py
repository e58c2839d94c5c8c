"""The MesaNet mixer (arXiv 2506.05233), with the parameter names and shapes of the layer in flash-linear-attention."""

import math
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...kernels.rivals import mesa_scan
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

# Published: lambda is at least this, and starts at 1.
SMALLEST_LAMBDA, FIRST_LAMBDA = 0.25, 1.0


class MesaNetConfig(Config):
    """Settings of MesaNet layers; the names are those of flash-linear-attention."""

    num_heads: Positive
    """Number of heads."""
    head_dim: Annotated[int, Field(gt=0, le=128)]
    """Width of a head's keys, queries and values; as published, `num_heads * head_dim` is `d_model`."""
    conv_size: Positive = 4
    """Tokens that the causal convolutions of queries and keys look at."""
    cg_steps: Positive = 30
    """Steps of conjugate gradients on a GPU; on the CPU and in decoding the systems are solved exactly."""

    @property
    def width(self) -> int:
        """Channels of the queries of all heads, and of keys and values."""
        return self.num_heads * self.head_dim


class MesaNetCache(NamedTuple):
    """The decoding state of a MesaNet layer. conv: `[B, conv_size - 1, channels]`, the last inputs of the convolutions; gram and
    values: `[B, H, K, K]`, the sums of keys with keys and with values, in fp32."""

    conv: Tensor
    gram: Tensor
    values: Tensor


@register("mesanet")
class MesaNet(SequenceMixer):
    """The MesaNet layer, `[B, T, d_model]` -> `[B, T, d_model]`."""

    options = MesaNetConfig
    reads_borders_on_host = True

    def __init__(self, d_model: int, config: MesaNetConfig, num_layers: int, *, norm_eps: float = 1e-5):
        super().__init__()
        self.config, self.num_layers = config, num_layers
        width = config.width
        self.q_proj = nn.Linear(d_model, width, bias=False)
        self.k_proj = nn.Linear(d_model, width, bias=False)
        self.v_proj = nn.Linear(d_model, width, bias=False)
        self.a_proj = nn.Linear(d_model, config.num_heads)
        self.b_proj = nn.Linear(d_model, config.num_heads)
        self.q_conv1d = nn.Conv1d(width, width, config.conv_size, groups=width, bias=False)
        self.k_conv1d = nn.Conv1d(width, width, config.conv_size, groups=width, bias=False)
        self.lambda_params = nn.Parameter(torch.empty(width))
        self.o_norm = RMSNorm(config.head_dim, norm_eps)
        self.o_proj = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor, *, cu_seqlens: Tensor | None = None, context: SequenceContext | None = None) -> Tensor:
        if context is not None:
            if context.world > 1:
                refuse_segments(self.kind)
            cu_seqlens = context.cu_seqlens
        q, k = self._convolve(self._inputs(x), cu_seqlens=cu_seqlens)
        options = {"steps": self.config.cg_steps, "cu_seqlens": cu_seqlens}
        y, _ = mesa_scan(q, k, self._heads(self.v_proj(x)), *self._gates(x), self._lambda(), **options)
        return self._project_out(y)

    @classmethod
    def build(cls, config: ModelConfig) -> "MesaNet":
        return cls(config.d_model, _settings(config), len(config.layers))

    @classmethod
    def check_device(cls, device: torch.device) -> None:
        check_library(cls.kind, device)

    @staticmethod
    def num_parameters(config: ModelConfig) -> int:
        d, own = config.d_model, _settings(config)
        maps = 4 * d * own.width + 2 * (d + 1) * own.num_heads
        return maps + 2 * own.conv_size * own.width + own.width + own.head_dim

    @staticmethod
    def mixing_flops(config: ModelConfig, length: int) -> float:
        # A product with the sums of a token, as those before its chunk of C tokens and the chunk's own: one a step of conjugate
        # gradients, one for the residual they start with, one for the read. The updates of both sums are 2 K products each.
        own, chunk = _settings(config), min(length, 64)
        product = 2 * own.width * own.head_dim + 4 * chunk * own.width
        return (own.cg_steps + 2) * product + 4 * own.width * own.head_dim

    @staticmethod
    def mixing_decode_flops(config: ModelConfig, context: int) -> float:
        # Decay and update of two sums, the elimination in one of them, and the read.
        own = _settings(config)
        return own.width * (6 * own.head_dim + 2 / 3 * own.head_dim**2 + 2 * own.head_dim)

    @staticmethod
    def state_bytes(config: ModelConfig, context: int, bytes_per_number: int) -> int:
        own = _settings(config)
        return 4 * 2 * own.width * own.head_dim + bytes_per_number * (own.conv_size - 1) * 2 * own.width

    @staticmethod
    def segment_message(config: ModelConfig, length: int, batch: int, bytes_per_number: int) -> SegmentMessage:
        refuse_segments("mesanet")

    @staticmethod
    def kept_numbers(config: ModelConfig) -> int:
        """Those of the library's kernels; the loop on the CPU keeps its sums for every token."""
        return config.d_model + 10 * _settings(config).width

    def init_cache(self, batch: int, like: Tensor) -> MesaNetCache:
        """The cache of rows without tokens; `like` gives dtype and device."""
        own = self.config
        gram, values = (
            at_least_fp32(like.new_zeros(batch, own.num_heads, own.head_dim, own.head_dim)) for _ in range(2)
        )
        return MesaNetCache(like.new_zeros(batch, own.conv_size - 1, 2 * own.width), gram, values)

    def extend(self, x: Tensor, cache: MesaNetCache, real: Tensor) -> tuple[Tensor, MesaNetCache]:
        """Process further tokens `[B, T, d_model]` from a cache; `real` `[B, T]` is False at padding, which stands at row ends."""
        inputs = self._inputs(x)
        q, k = self._convolve(inputs, state=cache.conv)
        decays, beta = (gate * real[..., None] for gate in self._gates(x))
        options = {"steps": self.config.cg_steps, "state": (cache.gram, cache.values)}
        y, (gram, values) = mesa_scan(q, k, self._heads(self.v_proj(x)), decays, beta, self._lambda(), **options)
        conv = latest(inputs, self.config.conv_size - 1, cache.conv, real)
        return self._project_out(y), MesaNetCache(conv, gram, values)

    def step(self, x: Tensor, cache: MesaNetCache) -> tuple[Tensor, MesaNetCache]:
        """Decode one token per row, `[B, d_model]`."""
        y, cache = self.extend(x[:, None], cache, torch.ones(len(x), 1, dtype=torch.bool, device=x.device))
        return y[:, 0], cache

    def _inputs(self, x: Tensor) -> Tensor:
        """The inputs of the convolutions, `[B, T, channels]`."""
        return torch.cat((self.q_proj(x), self.k_proj(x)), -1)

    def _convolve(self, inputs: Tensor, **options: Any) -> list[Tensor]:
        """Queries and keys `[B, T, H, K]`."""
        weight = torch.cat([conv.weight.squeeze(1) for conv in (self.q_conv1d, self.k_conv1d)])
        parts = self.config.width, self.config.width, 0
        q, k, _ = causal_convolution(inputs, weight, silu=True, parts=parts, **options)
        return [self._heads(q), self._heads(k)]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.num_heads, -1))

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the decays, and beta, `[B, T, H]`."""
        return F.logsigmoid(at_least_fp32(self.a_proj(x))), at_least_fp32(self.b_proj(x)).sigmoid()

    def _lambda(self) -> Tensor:
        return self._heads(F.softplus(at_least_fp32(self.lambda_params)) + SMALLEST_LAMBDA)

    def _project_out(self, y: Tensor) -> Tensor:
        return self.o_proj(self.o_norm(y).flatten(-2))

    def initialize(self, generator: torch.Generator) -> None:
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.a_proj, self.b_proj):
            normal_by_fan_in(layer.weight, generator)
        nn.init.zeros_(self.a_proj.bias)
        nn.init.zeros_(self.b_proj.bias)
        normal_by_fan_in(self.o_proj.weight, generator, gain=self.num_layers**-0.5)
        bound = self.config.conv_size**-0.5
        for conv in (self.q_conv1d, self.k_conv1d):
            nn.init.uniform_(conv.weight, -bound, bound, generator=generator)
        nn.init.constant_(self.lambda_params, math.log(math.expm1(FIRST_LAMBDA - SMALLEST_LAMBDA)))


def _settings(config: ModelConfig) -> MesaNetConfig:
    section = config.section("mesanet")
    assert isinstance(section, MesaNetConfig)
    return section
