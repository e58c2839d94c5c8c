"""The SKA mixer: projections, normalisation and write gate around `ska_attention` (arXiv 2605.06997 §3.2)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.documents import document_ids, inner_borders
from ...kernels.sequence import SequenceContext
from ...kernels.ska import DecodeState, SKAState, ska_attention, ska_step, start_decoding, unpack, write_gate
from ...kernels.ska import normalize_and_gate as normalize_and_gate
from ..common.errors import UserError
from ..config import ModelConfig, SKAConfig
from ..initialization import normal_by_fan_in
from ..norm import at_least_fp32
from .base import SequenceMixer
from .registry import SegmentMessage, register

SMALLEST_NORM = 1e-6
GAMMA_RANGE = (1.0, 1.5)


class SKACache(NamedTuple):
    """decode: the sums and their inverse factor; longest: `[B, H, 1]`, of the prompt's raw keys, for "sequence-max" only."""

    decode: DecodeState
    longest: Tensor | None


class ScaledLinear(nn.Linear):
    """W (eta y), with one eta a head: the weight takes it, which is smaller than y."""

    def forward(self, y: Tensor, eta: Tensor) -> Tensor:
        weight = self.weight.unflatten(1, (len(eta), -1)) * eta[:, None]
        return F.linear(y, weight.flatten(1).to(y.dtype))


@register("ska")
class SKA(SequenceMixer):
    """Spectral Koopman Attention, `[B, T, d_model]` -> `[B, T, d_model]`.

    With `gate_input` "token" every method also takes `token`, shaped as x: what `EchoLM.embed` gives for the gate.
    """

    options = SKAConfig
    inputs = frozenset({"token", "write_mask"})

    def __init__(self, d_model: int, config: SKAConfig):
        super().__init__()
        heads, keys = config.num_heads, config.num_heads * config.rank
        self.config = config
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = ScaledLinear(d_model, d_model, bias=False)
        self.gate_proj = None if config.write_gate == "none" else nn.Linear(d_model, heads)
        self.eta = nn.Parameter(torch.empty(heads), requires_grad=config.learn_eta)
        self.gamma_logit = nn.Parameter(torch.empty(heads)) if config.learn_gamma else None

    def forward(
        self,
        x: Tensor,
        *,
        token: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        context: SequenceContext | None = None,
        write_mask: Tensor | None = None,
    ) -> Tensor:
        if context is not None and context.world > 1 and self.config.normalization == "sequence-max":
            raise UserError('ska.normalization "sequence-max" needs whole rows: use "l2", or no sequence parallelism')
        y = ska_attention(
            *self.keys(x, cu_seqlens, write_mask, token),
            **self._options(),
            mode=self.config.mode,
            mask=write_mask,
            cu_seqlens=cu_seqlens,
            context=context,
        )
        return self._project_out(y, x.dtype)

    def keys(
        self,
        x: Tensor,
        cu_seqlens: Tensor | None = None,
        write_mask: Tensor | None = None,
        token: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the SKA operation: queries, gated keys and gated values, `[B, T, H, *]`. Keys outside of `write_mask` set no
        measure for "sequence-max"."""
        packed = self._project(x, token)
        longest = None
        if self.config.normalization == "sequence-max":
            k = self._unpack(packed)[1]
            k = k if write_mask is None else k * write_mask[..., None, None]
            longest = longest_key(k, inner_borders(cu_seqlens, *x.shape[:2], x.device))
        return self._normalize_and_gate(packed, longest)

    @classmethod
    def build(cls, config: ModelConfig) -> "SKA":
        return cls(config.d_model, config.ska)

    @staticmethod
    def num_parameters(config: ModelConfig) -> int:
        d, ska = config.d_model, config.ska
        gate = 0 if ska.write_gate == "none" else d * ska.num_heads + ska.num_heads
        gamma = ska.num_heads if ska.learn_gamma else 0
        return 2 * d * ska.num_heads * ska.rank + 2 * d * d + gate + gamma + ska.num_heads

    @staticmethod
    def mixing_flops(config: ModelConfig, length: int) -> float:
        ska = config.ska
        rank, width, exact = ska.rank, config.d_model // ska.num_heads, ska.mode == "exact"
        chunk = min(length, ska.grid)
        sums = 2 * rank * (2 * rank + width)
        factor = 2 * rank**3 / chunk  # Cholesky, its inverse
        solve, pairs = 2 * rank * rank, 0
        if exact:  # Z G^-1, its Gram, its factor, W
            factor += 2 * rank * rank + 2 * chunk * rank + chunk * chunk / 3 + chunk * rank
            solve, pairs = solve + 4 * chunk * rank, 4 * chunk * rank
        filters = ska.power * (2 * rank * rank + pairs + solve)
        read = 2 * rank * width + (2 * chunk * (rank + width) if exact else 0)
        return ska.num_heads * (sums + factor + solve + filters + read)

    @staticmethod
    def mixing_decode_flops(config: ModelConfig, context: int) -> float:
        ska = config.ska
        rank, width = ska.rank, config.d_model // ska.num_heads
        write = 2 * rank * (2 * rank + width) + (9 * rank * rank if ska.mode == "exact" else 0)
        read = 2 * rank * rank * (1 + 2 * ska.power) + 2 * rank * width
        return ska.num_heads * (write + read)

    @staticmethod
    def state_bytes(config: ModelConfig, context: int, bytes_per_number: int) -> int:
        ska = config.ska
        rank, width = ska.rank, config.d_model // ska.num_heads
        sums = 2 * rank * rank + width * rank + rank
        numbers = sums + rank * rank  # the inverse factor
        if ska.mode == "chunk":
            numbers += sums  # as of the last border of the grid
        if ska.normalization == "sequence-max":
            numbers += 1
        return 4 * ska.num_heads * numbers + (8 if ska.mode == "chunk" else 0)  # always fp32

    @staticmethod
    def segment_message(config: ModelConfig, length: int, batch: int, bytes_per_number: int) -> SegmentMessage:
        """Forward 2 R^2 + P R + 2 R numbers a head (value lag: + P) and the segment's length, backward 2 R^2 + P R + R, in
        fp32 at least."""
        ska, wide = config.ska, max(4, bytes_per_number)
        rank, width = ska.rank, config.d_model // ska.num_heads
        sums = 2 * rank * rank + width * rank
        forward = ska.num_heads * (sums + 2 * rank + (width if ska.value_lag else 0))
        backward = ska.num_heads * (sums + rank)
        return SegmentMessage(wide * (batch * forward + 1), wide * batch * backward)

    @staticmethod
    def kept_numbers(config: ModelConfig) -> int:
        return 4 * config.d_model + config.ska.num_heads * config.ska.rank * (6 + config.ska.power)

    @property
    def reads_token(self) -> bool:
        return self.config.gate_input == "token"

    @property
    def has_write_gate(self) -> bool:
        return self.gate_proj is not None

    def prefill_segment(self, segment: int, length: int) -> int:
        """All of the prompt for "sequence-max", whose maximum is taken before any of it is read; else whole chunks."""
        if self.config.normalization == "sequence-max":
            return length
        if self.config.mode == "chunk" and segment % self.config.grid:
            raise ValueError(f"segment={segment} must be a multiple of the chunk size {self.config.grid}")
        return segment

    def init_cache(self, batch: int, like: Tensor) -> SKACache:
        """The state of empty rows; `like` gives dtype and device."""
        config = self.config
        width = self.v_proj.out_features // config.num_heads
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        sums = SKAState.zeros(batch, config.num_heads, config.rank, width, dtype=dtype, device=like.device)
        position = torch.zeros(batch, dtype=torch.int64, device=like.device)
        chunked = dict(visible=sums, position=position) if config.mode == "chunk" else {}
        longest = None
        if config.normalization == "sequence-max":
            longest = sums.last_key[..., :1]
        return SKACache(start_decoding(sums, ridge=config.ridge, **chunked), longest)

    def extend(self, x: Tensor, cache: SKACache, real: Tensor, token: Tensor | None = None) -> tuple[Tensor, SKACache]:
        """Go on from a cache with `[B, T, d_model]`; `real` `[B, T]` is False at padding, which stands at row ends.

        In "chunk" mode the cache must stand on the chunk grid; "sequence-max" takes its maximum here.
        """
        packed = self._project(x, token)
        longest = cache.longest
        if longest is not None:
            k = self._unpack(packed)[1]
            longest = torch.maximum(longest, longest_key(k * real[..., None, None], None)[:, 0])
        q, k, v = self._normalize_and_gate(packed, None if longest is None else longest[:, None])
        old = cache.decode
        options = dict(self._options(), return_state=True)
        y, sums = ska_attention(q, k, v, **options, mode=self.config.mode, mask=real, state=old.sums)
        chunked = {}
        if old.visible is not None:
            position = old.position + real.sum(1)
            on_grid = position - position % self.config.grid
            on_grid_tokens = real & (
                old.position[:, None] + torch.arange(x.shape[1], device=x.device) < on_grid[:, None]
            )
            # Steps move the visible sums on only when the next one comes: at a border those of the cache are a chunk old.
            border = old.position % self.config.grid == 0
            past = SKAState(*(_where_rows(border, *parts) for parts in zip(old.sums, old.visible, strict=True)))
            visible = ska_attention(q, k, v, **options, mode="chunk", mask=on_grid_tokens, state=past)[1]
            chunked = dict(visible=visible, position=position)
        decode = start_decoding(sums, ridge=self.config.ridge, **chunked)
        return self._project_out(y, x.dtype), SKACache(decode, longest)

    def step(self, x: Tensor, cache: SKACache, token: Tensor | None = None) -> tuple[Tensor, SKACache]:
        """One token, `[B, d_model]`; the cache is updated in place and returned."""
        q, k, v = self._normalize_and_gate(self._project(x, token), cache.longest)
        y = ska_step(q, k, v, cache.decode, **self._options())
        return self._project_out(y, x.dtype), cache

    def _options(self) -> dict:
        config = self.config
        return dict(
            power=config.power,
            ridge=config.ridge,
            scale=self.gamma(),
            chunk_size=config.grid,
            value_lag=config.value_lag,
        )

    def gamma(self) -> float | Tensor:
        """The factor s of each filter step: a float, or `[H]`."""
        if self.gamma_logit is None:
            return self.config.gamma
        low, high = GAMMA_RANGE
        return low + (high - low) * torch.sigmoid(at_least_fp32(self.gamma_logit))

    def gate(self, x: Tensor, token: Tensor | None = None) -> Tensor | None:
        """The write gate on keys and values: `[..., H]` in [0, 1], or None without a gate."""
        logits = self.gate_logits(x, token)
        return None if logits is None else write_gate(logits, self.config.write_gate)

    def gate_logits(self, x: Tensor, token: Tensor | None = None) -> Tensor | None:
        """Logits of the write gate: `[..., H]`, or None without a gate."""
        return None if self.gate_proj is None else self.gate_proj(self._gate_input(x, token))

    def gate_mean(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        """The mean of sigmoid(gate logit) over positions and heads, an fp32 scalar, which the gate penalty multiplies.

        The sigmoid of the logit and not the gate itself: its gradient also reaches gates that are closed, and hardly those that
        are wide open (the L0 norm of hard-concrete gates has the same shape: Louizos et al. 2018, eq. 12).
        """
        return torch.sigmoid(at_least_fp32(self.gate_logits(x, token))).mean()

    def _gate_input(self, x: Tensor, token: Tensor | None) -> Tensor:
        if self.config.gate_input == "hidden":
            return x
        if token is None:
            raise ValueError('ska.gate_input is "token": the layer needs `token`, as `EchoLM.embed` gives it')
        return token

    def _project(self, x: Tensor, token: Tensor | None) -> Tensor:
        """Raw queries, keys, values and gate logits side by side, as `normalize_and_gate` takes them: one product for all
        that is made of x, so that x and its gradient are passed over once."""
        weights = [projection.weight for projection in (self.q_proj, self.k_proj, self.v_proj)]
        gate = [] if self.gate_proj is None else [self.gate_proj.weight]
        if x.dim() == 3:  # rows of a multiple of 16 bytes keep the products fast
            columns = sum(len(weight) for weight in weights + gate)
            gate.append(weights[0].new_zeros(-columns % 8, x.shape[-1]))
        gate_input = self._gate_input(x, token)
        if gate_input is x:
            return _side_by_side(x, weights + gate)
        return torch.cat((_side_by_side(x, weights), _side_by_side(gate_input, gate)), -1)

    def _unpack(self, packed: Tensor) -> tuple[Tensor, ...]:
        config = self.config
        return unpack(packed, config.num_heads, config.rank, self.v_proj.out_features // config.num_heads)

    def _normalize_and_gate(self, packed: Tensor, longest: Tensor | None) -> tuple[Tensor, ...]:
        """Normalised queries, normalised and gated keys, gated values, in the dtype of the projections: training and
        decoding round keys alike."""
        config = self.config
        bias = None if self.gate_proj is None else self.gate_proj.bias
        if config.normalization == "l2":
            sizes = dict(heads=config.num_heads, rank=config.rank, width=self.v_proj.out_features // config.num_heads)
            return normalize_and_gate(packed, bias, **sizes, kind=config.write_gate)
        q, k, v, logits = self._unpack(packed)
        if longest is not None:
            q, k = ((at_least_fp32(t) / longest.clamp(min=SMALLEST_NORM)).to(t.dtype) for t in (q, k))
        if bias is not None:
            gate = write_gate(at_least_fp32(logits[..., : config.num_heads]) + bias, config.write_gate)
            k, v = ((at_least_fp32(t) * gate[..., None]).to(t.dtype) for t in (k, v))
        return q, k, v

    def _project_out(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return self.out_proj(y.flatten(-2).to(dtype), self.eta)

    def initialize(self, generator: torch.Generator) -> None:
        # An orthogonal start for keys and queries and a silent output are the paper's.
        nn.init.orthogonal_(self.q_proj.weight, generator=generator)
        nn.init.orthogonal_(self.k_proj.weight, generator=generator)
        normal_by_fan_in(self.v_proj.weight, generator)
        nn.init.zeros_(self.out_proj.weight)
        if self.gate_proj is not None:
            normal_by_fan_in(self.gate_proj.weight, generator)
            nn.init.zeros_(self.gate_proj.bias)
        nn.init.constant_(self.eta, self.config.eta)
        if self.gamma_logit is not None:
            low, high = GAMMA_RANGE
            share = (self.config.gamma - low) / (high - low)
            nn.init.constant_(self.gamma_logit, torch.logit(torch.tensor(share)).item())


def _side_by_side(x: Tensor, weights: list[Tensor]) -> Tensor:
    """x W^T of each W, along the last dimension."""
    if x.dim() == 2:  # decoding: the weights are larger than what they give
        return torch.cat([F.linear(x, weight) for weight in weights], -1)
    return F.linear(x, torch.cat(weights))


def _where_rows(rows: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """x where `rows` `[B]` is True, `other` elsewhere."""
    return torch.where(rows.view(-1, *[1] * (x.dim() - 1)), x, other)


def longest_key(k: Tensor, starts: Tensor | None) -> Tensor:
    """The norm of the longest key of each token's document: `[B, T, H, R]` -> `[B, T or 1, H, 1]`."""
    norms = at_least_fp32(k).norm(dim=-1)
    if starts is None:
        return norms.amax(1, keepdim=True)[..., None]
    ids = document_ids(starts)[..., None].expand_as(norms)
    longest = norms.new_zeros(norms.shape).scatter_reduce(1, ids, norms, "amax", include_self=False)
    return longest.gather(1, ids)[..., None]
