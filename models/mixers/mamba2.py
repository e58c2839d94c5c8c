"""The Mamba-2 mixer (arXiv 2405.21060), with the parameter names and shapes of `mamba_ssm.Mamba2`, whose weights can be loaded
unchanged."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.available import on_gpu
from ...kernels.sequence import SequenceContext
from ...kernels.ssd import causal_convolution, enter_segment, ssd_scan, ssd_update
from ..config import Mamba2Config, ModelConfig
from ..initialization import normal_by_fan_in
from ..norm import GatedRMSNorm, at_least_fp32
from .base import SequenceMixer
from .registry import SegmentMessage, register

# Step sizes start log-uniform in this range, -A uniform in (1, 16): the defaults of mamba-ssm.
DT_RANGE = (1e-3, 1e-1)
A_RANGE = (1.0, 16.0)


class Mamba2Cache(NamedTuple):
    """The decoding state of a Mamba-2 layer. conv: `[B, d_conv - 1, channels]`, the last inputs of the convolution; ssm:
    `[B, H, headdim, d_state]`, the state of the scan."""

    conv: Tensor
    ssm: Tensor


@register("mamba2")
class Mamba2(SequenceMixer):
    """The Mamba-2 layer, `[B, T, d_model]` -> `[B, T, d_model]`."""

    options = Mamba2Config

    def __init__(self, d_model: int, config: Mamba2Config, num_layers: int, *, norm_eps: float = 1e-5):
        super().__init__()
        self.config, self.num_layers = config, num_layers
        self.d_inner = config.expand * d_model
        self.num_heads = self.d_inner // config.headdim
        self.d_conv_channels = self.d_inner + 2 * config.ngroups * config.d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + self.d_conv_channels + self.num_heads, bias=False)
        self.conv1d = nn.Conv1d(
            self.d_conv_channels,
            self.d_conv_channels,
            config.d_conv,
            groups=self.d_conv_channels,
            padding=config.d_conv - 1,
        )
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        self.norm = GatedRMSNorm(self.d_inner, norm_eps, config.ngroups)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor, *, cu_seqlens: Tensor | None = None, context: SequenceContext | None = None) -> Tensor:
        z, inputs, dt = self._project(x)
        steps, a, first, state = self._step_sizes(dt), self._a(), None, None
        if context is not None:
            cu_seqlens = context.local_cu_seqlens(x.shape[0], x.shape[1], x.device)
        if context is not None and context.world > 1:
            convolution, parts, groups = (self.conv1d.weight, self._bias), self._parts, self.config.ngroups
            # Only the convolution may read these inputs, since `enter_segment` completes their gradient in place.
            inputs, first, state = enter_segment(
                inputs, *convolution, steps, a, parts=parts, groups=groups, context=context
            )
        convolved = self._convolve(inputs, first=first, cu_seqlens=cu_seqlens, silu=True, parts=self._parts)
        values, b, c = self._heads(convolved)
        y = ssd_scan(values, steps, a, b, c, d=self.D, state=state, cu_seqlens=cu_seqlens)
        return self._project_out(y, z)

    @classmethod
    def build(cls, config: ModelConfig) -> "Mamba2":
        return cls(config.d_model, config.mamba2_settings, len(config.layers))

    @staticmethod
    def num_parameters(config: ModelConfig) -> int:
        d, mamba = config.d_model, config.mamba2_settings
        inner = mamba.expand * d
        heads, channels = inner // mamba.headdim, inner + 2 * mamba.ngroups * mamba.d_state
        return d * (inner + channels + heads) + channels * (mamba.d_conv + 1) + 3 * heads + inner + inner * d

    @staticmethod
    def mixing_flops(config: ModelConfig, length: int) -> float:
        # Kernels choose their own chunk sizes; the additional FLOPs of longer chunks are not counted here.
        mamba, chunk = config.mamba2_settings, min(length, 64)
        inner = mamba.expand * config.d_model
        return 2 * chunk * (mamba.ngroups * mamba.d_state + inner) + 4 * inner * mamba.d_state

    @staticmethod
    def mixing_decode_flops(config: ModelConfig, context: int) -> float:
        return 5 * config.mamba2_settings.expand * config.d_model * config.mamba2_settings.d_state

    @staticmethod
    def state_bytes(config: ModelConfig, context: int, bytes_per_number: int) -> int:
        mamba = config.mamba2_settings
        inner = mamba.expand * config.d_model
        channels = inner + 2 * mamba.ngroups * mamba.d_state
        return 4 * inner * mamba.d_state + bytes_per_number * (mamba.d_conv - 1) * channels  # the scan's state is fp32

    @staticmethod
    def segment_message(config: ModelConfig, length: int, batch: int, bytes_per_number: int) -> SegmentMessage:
        """Size of the message, with inner width I and C = I + 2 G N channels: forward I N + H + (W - 1) (C + I + G N + H)
        numbers and the segment's length, backward I N + (W - 1) C, in fp32 at least."""
        mamba, wide = config.mamba2_settings, max(4, bytes_per_number)
        inner, keys = mamba.expand * config.d_model, mamba.ngroups * mamba.d_state
        heads, channels, reach = inner // mamba.headdim, inner + 2 * keys, mamba.d_conv - 1
        forward = inner * mamba.d_state + heads + reach * (channels + inner + keys + heads)
        backward = inner * mamba.d_state + reach * channels
        return SegmentMessage(wide * (batch * forward + 1), wide * batch * backward)

    @staticmethod
    def kept_numbers(config: ModelConfig) -> int:
        d, mamba = config.d_model, config.mamba2_settings
        return d + 7 * mamba.expand * d + 6 * mamba.ngroups * mamba.d_state

    def init_cache(self, batch: int, like: Tensor) -> Mamba2Cache:
        """The cache of rows without tokens; `like` gives dtype and device."""
        config = self.config
        state = at_least_fp32(like.new_zeros(batch, self.num_heads, config.headdim, config.d_state))
        return Mamba2Cache(like.new_zeros(batch, config.d_conv - 1, self.d_conv_channels), state)

    def extend(self, x: Tensor, cache: Mamba2Cache, real: Tensor) -> tuple[Tensor, Mamba2Cache]:
        """Process further tokens `[B, T, d_model]` from a cache; `real` `[B, T]` is False at padding, which stands at row ends."""
        z, inputs, dt = self._project(x)
        values, b, c = self._heads(self._convolve(inputs, state=cache.conv, silu=True, parts=self._parts))
        steps = self._step_sizes(dt) * real[..., None]
        y, ssm = ssd_scan(values, steps, self._a(), b, c, d=self.D, state=cache.ssm, return_state=True)
        taps = self.config.d_conv - 1
        newest = real.sum(1)[:, None] + torch.arange(taps, device=x.device)
        window = torch.cat((cache.conv, inputs), 1)
        conv = window.gather(1, newest[..., None].expand(-1, -1, window.shape[-1]))
        return self._project_out(y, z), Mamba2Cache(conv, ssm)

    def step(self, x: Tensor, cache: Mamba2Cache) -> tuple[Tensor, Mamba2Cache]:
        """Decode one token per row, `[B, d_model]`."""
        z, inputs, dt = self._project(x)
        window = torch.cat((cache.conv, inputs[:, None]), 1)
        convolved = F.silu((window * self.conv1d.weight.squeeze(1).T).sum(1) + self._bias)
        values, b, c = self._heads(convolved.split(self._parts, -1))
        share = self.num_heads // self.config.ngroups
        b, c, wide = (at_least_fp32(t) for t in (b.repeat_interleave(share, 1), c.repeat_interleave(share, 1), values))
        ssm = ssd_update(cache.ssm, wide, self._step_sizes(dt), self._a(), b)
        y = torch.einsum("bhpn,bhn->bhp", ssm, c) + wide * self.D[:, None]
        return self._project_out(y.to(values.dtype), z), Mamba2Cache(window[:, 1:], ssm)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output gate, the convolution's inputs, and raw step sizes."""
        weight, padding = self.in_proj.weight, -len(self.in_proj.weight) % 8
        if padding and on_gpu(x):
            # Rows of a multiple of 16 bytes keep the products fast.
            weight = torch.cat((weight, weight.new_zeros(padding, x.shape[-1])))
        sizes = self.d_inner, self.d_conv_channels, self.num_heads, len(weight) - len(self.in_proj.weight)
        z, inputs, dt, _ = F.linear(x, weight).split(sizes, -1)
        return z, inputs, dt

    def _convolve(self, inputs: Tensor, **options: Any) -> Any:
        return causal_convolution(inputs, self.conv1d.weight.squeeze(1), self._bias, **options)

    def _project_out(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(self.norm(y.flatten(-2), z))

    @property
    def _bias(self) -> Tensor:
        """The bias of the convolution, `[channels]`."""
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    @property
    def _parts(self) -> tuple[int, int, int]:
        """The number of channels of the values, of b and of c."""
        state = self.config.ngroups * self.config.d_state
        return self.d_inner, state, state

    def _heads(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Values `[..., H, P]`, b and c `[..., G, N]`."""
        values, b, c = parts
        groups = (self.config.ngroups, self.config.d_state)
        return values.unflatten(-1, (self.num_heads, -1)), b.unflatten(-1, groups), c.unflatten(-1, groups)

    def _step_sizes(self, dt: Tensor) -> Tensor:
        return F.softplus(at_least_fp32(dt) + at_least_fp32(self.dt_bias))

    def _a(self) -> Tensor:
        return -torch.exp(at_least_fp32(self.A_log))

    def initialize(self, generator: torch.Generator) -> None:
        normal_by_fan_in(self.in_proj.weight, generator)
        normal_by_fan_in(self.out_proj.weight, generator, gain=self.num_layers**-0.5)
        bound = self.config.d_conv**-0.5
        nn.init.uniform_(self.conv1d.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self._bias)
        low, high = map(math.log, DT_RANGE)
        dt = torch.empty(self.num_heads).uniform_(low, high, generator=generator).exp()
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        self.A_log.copy_(torch.empty(self.num_heads).uniform_(*A_RANGE, generator=generator).log())
        nn.init.ones_(self.D)
