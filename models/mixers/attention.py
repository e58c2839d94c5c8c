"""Causal softmax attention with rotary positions (arXiv 2104.09864), for the hybrid and transformer baselines."""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.documents import document_ids, inner_borders
from ...kernels.operator import uncompiled
from ...kernels.sequence import SequenceContext, gather_segments
from ..config import AttentionConfig, ModelConfig
from ..initialization import normal_by_fan_in
from .base import SequenceMixer
from .registry import SegmentMessage, register


class AttentionCache(NamedTuple):
    """The KV cache of an attention layer. k, v: `[B, H, T, D]`, keys rotated; real: bool `[B, T]`, False at padding; position:
    `[B]` of the next token."""

    k: Tensor
    v: Tensor
    real: Tensor
    position: Tensor


@register("attention")
class Attention(SequenceMixer):
    """Causal softmax attention with rotary positions, `[B, T, d_model]` -> `[B, T, d_model]`."""

    options = AttentionConfig

    def __init__(self, d_model: int, config: AttentionConfig, num_layers: int):
        super().__init__()
        self.num_heads, self.rope_base, self.num_layers = config.num_heads, config.rope_base, num_layers
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, *, cu_seqlens: Tensor | None = None, context: SequenceContext | None = None) -> Tensor:
        if context is not None:
            return self._forward_segment(x, context)
        batch, length, _ = x.shape
        q, k, v = self._project(x, self._rotation(x, 0))
        starts = inner_borders(cu_seqlens, batch, length, x.device)
        if starts is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            ids = document_ids(starts)
            visible = (ids[:, :, None] == ids[:, None, :]).tril()
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None])
        return self._project_out(y)

    def _forward_segment(self, x: Tensor, context: SequenceContext) -> Tensor:
        """Attention under sequence parallelism: queries of this rank's segment over keys and values of all segments up to it."""
        batch, length, _ = x.shape
        first = context.rank * length
        q, *kv = self._project(x, self._rotation(x, first))
        gathered = gather_segments(torch.stack(kv), context)[: context.rank + 1]
        k, v = gathered.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)  # [B, H, T so far, D]
        starts = context.starts(batch, length, x.device)
        if starts is not None:
            ids = document_ids(starts[:, : context.rank + 1].flatten(1))
            visible = (ids[:, first:, None] == ids[:, None, :]).tril(first)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None])
        else:
            from torch.nn.attention.bias import causal_lower_right  # imports torch's compiler: a second at each start

            y = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(length, k.shape[2]))
        return self._project_out(y)

    @classmethod
    def build(cls, config: ModelConfig) -> "Attention":
        return cls(config.d_model, config.attention_settings, len(config.layers))

    @staticmethod
    def num_parameters(config: ModelConfig) -> int:
        return 4 * config.d_model**2

    @staticmethod
    def mixing_flops(config: ModelConfig, length: int) -> float:
        return 4 * config.d_model * (length + 1) / 2

    @staticmethod
    def mixing_decode_flops(config: ModelConfig, context: int) -> float:
        return 4 * config.d_model * (context + 1)

    @staticmethod
    def state_bytes(config: ModelConfig, context: int, bytes_per_number: int) -> int:
        # Keys, values and a padding flag; the position.
        return context * (2 * config.d_model * bytes_per_number + 1) + 8

    @staticmethod
    def segment_message(config: ModelConfig, length: int, batch: int, bytes_per_number: int) -> SegmentMessage:
        """Bytes of the message: keys and values, 2 d numbers per token in the activations' dtype; their gradients in fp32."""
        numbers = 2 * config.d_model * batch * length
        return SegmentMessage(bytes_per_number * numbers, max(4, bytes_per_number) * numbers)

    @staticmethod
    def kept_numbers(config: ModelConfig) -> int:
        return 5 * config.d_model

    def init_cache(self, batch: int, like: Tensor) -> AttentionCache:
        """The cache of rows without tokens; `like` gives dtype and device."""
        width = self.out_proj.in_features // self.num_heads
        none = like.new_zeros(batch, self.num_heads, 0, width)
        real = torch.zeros(batch, 0, dtype=torch.bool, device=like.device)
        return AttentionCache(none, none, real, torch.zeros(batch, dtype=torch.int64, device=like.device))

    def random_cache(self, batch: int, like: Tensor, context: int) -> AttentionCache:
        """Keys and values of `context` tokens, drawn at random."""
        empty = self.init_cache(batch, like)
        shape = (batch, self.num_heads, context, empty.k.shape[3])
        keys, values = (torch.randn(shape, dtype=like.dtype, device=like.device) for _ in range(2))
        real = torch.ones(batch, context, dtype=torch.bool, device=like.device)
        return AttentionCache(keys, values, real, empty.position + context)

    def extend(self, x: Tensor, cache: AttentionCache, real: Tensor) -> tuple[Tensor, AttentionCache]:
        """Process further tokens `[B, T, d_model]` from a cache; `real` `[B, T]` is False at padding, which stands at row ends."""
        length, past = x.shape[1], cache.real.shape[1]
        positions = cache.position[:, None] + torch.arange(length, device=x.device)
        half = x.shape[-1] // self.num_heads // 2
        q, k, v = self._project(x, rotation_table(positions, half, self.rope_base, x.dtype))
        cache = AttentionCache(
            torch.cat((cache.k, k), 2),
            torch.cat((cache.v, v), 2),
            torch.cat((cache.real, real), 1),
            cache.position + real.sum(1),
        )
        causal = torch.ones(length, past + length, dtype=torch.bool, device=x.device).tril(past)
        # A padded query may have no real entry to attend to: it attends to itself, and its result is not used.
        own = torch.ones_like(causal).triu(past) & causal
        y = F.scaled_dot_product_attention(q, cache.k, cache.v, attn_mask=(causal & cache.real[:, None] | own)[:, None])
        return self._project_out(y), cache

    def step(self, x: Tensor, cache: AttentionCache) -> tuple[Tensor, AttentionCache]:
        """Decode one token per row, `[B, d_model]`."""
        y, cache = self.extend(x[:, None], cache, torch.ones(len(x), 1, dtype=torch.bool, device=x.device))
        return y[:, 0], cache

    def _project(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, `[B, H, T, D]`; `rotation` as `rotation_table` gives it, None for no rotation."""
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (q, k, v) if rotation is None else (rotate(q, *rotation), rotate(k, *rotation), v)

    def _rotation(self, x: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The rotation table for tokens `[B, T, d_model]` at positions `first`, `first` + 1, ..."""
        half = x.shape[-1] // self.num_heads // 2
        return _rotation_of_row(first, x.shape[1], half, self.rope_base, x.dtype, x.device)

    def _project_out(self, y: Tensor) -> Tensor:
        return self.out_proj(y.transpose(1, 2).flatten(-2))

    def initialize(self, generator: torch.Generator) -> None:
        normal_by_fan_in(self.qkv_proj.weight, generator)
        normal_by_fan_in(self.out_proj.weight, generator, gain=self.num_layers**-0.5)


def rotation_table(positions: Tensor, half: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles by which rotary positions turn each pair: `[1 or B, T]` -> `[1 or B, 1, T, half]` each.

    Angles in float64: in fp32 they are off by 0.05 at a million tokens.
    """
    frequency = base ** (-torch.arange(half, device=positions.device, dtype=torch.float64) / half)
    angle = positions[:, None, :, None] * frequency
    return angle.cos().to(dtype), angle.sin().to(dtype)


@uncompiled  # if traced, a float64 cosine would be computed for every element of queries and keys
@lru_cache(maxsize=8)
def _rotation_of_row(
    first: int, length: int, half: int, base: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # it is cached, and a later training step may need it
        table = rotation_table(torch.arange(first, first + length, device=device)[None], half, base, dtype)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # other streams may read it
    return table


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2)."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
