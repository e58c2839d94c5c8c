"""The SKA mixer: projections, normalisation and write gate around `ska_attention` (arXiv 2605.06997 §3.2)."""

import torch
from torch import Tensor, nn

from ...kernels.documents import inner_borders
from ...kernels.sequence import SequenceContext
from ...kernels.ska import ReadOptions, SKAState, ska_attention, start_decoding, unpack, write_gate
from ...kernels.ska import normalize_and_gate as normalize_and_gate
from ..config import ModelConfig, SKAConfig
from ..initialization import normal_by_fan_in
from ..norm import at_least_fp32
from .delay import delayed, latest, rows_before
from .registry import register
from .ska_costs import SKACosts, refuse_segments
from .ska_hops import bind_next_keys, read, read_step
from .ska_parts import Recent, ScaledLinear, SKACache, longest_key, side_by_side, where_rows

SMALLEST_NORM = 1e-6
GAMMA_RANGE = (1.0, 1.5)


@register("ska")
class SKA(SKACosts):
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
        self.gate_proj = self.context_gate_proj = self.blend_proj = None
        if config.write_gate != "none":
            self.gate_proj = nn.Linear(config.gate_window * d_model, heads - config.context_heads)
        if config.context_heads:
            self.context_gate_proj = nn.Linear(d_model, config.context_heads)
        if config.blend:
            self.blend_proj = nn.Linear(d_model, heads * (config.power + 1))
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
        if context is not None and context.world > 1:
            refuse_segments(self.config)
        y = read(
            *self.keys(x, cu_seqlens, write_mask, token, context),
            self.config.two_hop_heads,
            **self._options(),
            mode=self.config.mode,
            blend=self.blend(x),
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
        context: SequenceContext | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the SKA operation: queries, gated keys and gated values, `[B, T, H, *]`; with `two_hop_heads` the values' own
        keys stand behind the values. Keys outside of `write_mask` set no measure for "sequence-max"."""
        starts = None
        if self._looks_at_borders:
            shape: tuple[int, int, torch.device] = (x.shape[0], x.shape[1], x.device)
            starts = inner_borders(cu_seqlens, *shape) if context is None else context.own_starts(*shape)
        packed = self._project(x, token, starts=starts, context=context)[0]
        longest = None
        if self.config.normalization == "sequence-max":
            k = self._unpack(packed)[1]
            k = k if write_mask is None else k * write_mask[..., None, None]
            longest = longest_key(k, starts)
        return self._normalize_and_gate(packed, longest)

    @classmethod
    def build(cls, config: ModelConfig) -> "SKA":
        return cls(config.d_model, config.ska_settings)

    @property
    def reads_token(self) -> bool:
        return self.config.gate_input == "token"

    @property
    def has_write_gate(self) -> bool:
        return self.gate_proj is not None

    def prefill_segment(self, segment: int, length: int) -> int:
        """The whole prompt for "sequence-max", whose maximum must be known before any of it is read; else whole chunks."""
        if self.config.normalization == "sequence-max":
            return length
        if self.config.mode == "chunk" and segment % self.config.grid:
            raise ValueError(f"segment={segment} must be a multiple of the chunk size {self.config.grid}")
        return segment

    def init_cache(self, batch: int, like: Tensor) -> SKACache:
        """The cache of rows without tokens; `like` gives dtype and device."""
        config = self.config
        width = self.v_proj.out_features // config.num_heads + (config.rank if config.two_hop_heads else 0)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        sums = SKAState.zeros(batch, config.num_heads, config.rank, width, dtype=dtype, device=like.device)
        position = torch.zeros(batch, dtype=torch.int64, device=like.device)
        visible, position = (sums, position) if config.mode == "chunk" else (None, None)
        longest = None
        if config.normalization == "sequence-max":
            longest = sums.last_key[..., :1]
        recent = None
        if config.looks_back:
            sizes = self._recent_sizes
            recent = Recent(*(like.new_zeros(batch, count, width) for count, width in sizes))
        decode = start_decoding(sums, ridge=config.ridge, visible=visible, position=position)
        return SKACache(decode, longest, recent)

    def extend(self, x: Tensor, cache: SKACache, real: Tensor, token: Tensor | None = None) -> tuple[Tensor, SKACache]:
        """Process further tokens `[B, T, d_model]` from a cache; `real` `[B, T]` is False at padding, which stands at row ends.

        In "chunk" mode the cache must stand on the chunk grid; "sequence-max" takes its maximum here.
        """
        packed, recent = self._project(x, token, cache.recent, real=real)
        longest = cache.longest
        if longest is not None:
            k = self._unpack(packed)[1]
            longest = torch.maximum(longest, longest_key(k * real[..., None, None], None)[:, 0])
        q, k, v = self._normalize_and_gate(packed, None if longest is None else longest[:, None])
        old = cache.decode
        options, mode, hops = self._options(), self.config.mode, self.config.two_hop_heads
        y, sums = read(
            q, k, v, hops, **options, mode=mode, blend=self.blend(x), mask=real, state=old.sums, return_state=True
        )
        visible = position = None
        if old.visible is not None:
            assert old.position is not None
            position = old.position + real.sum(1)
            on_grid = position - position % self.config.grid
            on_grid_tokens = real & (
                old.position[:, None] + torch.arange(x.shape[1], device=x.device) < on_grid[:, None]
            )
            # A step updates the visible sums only when the next token comes: at a border those of the cache are a chunk old.
            border = old.position % self.config.grid == 0
            past = SKAState(*(where_rows(border, *parts) for parts in zip(old.sums, old.visible, strict=True)))
            _, visible = ska_attention(
                q, k, v, **options, return_state=True, mode="chunk", mask=on_grid_tokens, state=past
            )
        decode = start_decoding(sums, ridge=self.config.ridge, visible=visible, position=position)
        return self._project_out(y, x.dtype), SKACache(decode, longest, recent)

    def step(self, x: Tensor, cache: SKACache, token: Tensor | None = None) -> tuple[Tensor, SKACache]:
        """Decode one token per row, `[B, d_model]`; the cache is updated in place and returned."""
        if cache.recent is None:
            packed, recent = self._project(x, token)
        else:
            real = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
            token = None if token is None else token[:, None]
            packed, recent = self._project(x[:, None], token, cache.recent, real=real)
            packed = packed[:, 0]
        q, k, v = self._normalize_and_gate(packed, cache.longest)
        y = read_step(q, k, v, cache.decode, self.config.two_hop_heads, blend=self.blend(x), **self._options())
        return self._project_out(y, x.dtype), cache._replace(recent=recent)

    def _options(self) -> ReadOptions:
        c, scale = self.config, self.gamma()
        return {"power": c.power, "ridge": c.ridge, "scale": scale, "chunk_size": c.grid, "value_lag": c.value_lag}

    def gamma(self) -> float | Tensor:
        """The factor gamma (`scale` of `ska_attention`) of each filter step: a float, or `[H]`."""
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
        if self.gate_proj is None:
            return None
        logits = self.gate_proj(self._gate_input(x, token))
        return logits if self.context_gate_proj is None else torch.cat((logits, self.context_gate_proj(x)), -1)

    def blend(self, x: Tensor) -> Tensor | None:
        """The weights by which the reads of all powers are mixed: `[..., H, power + 1]`, sums of 1, in fp32 at least; None
        without a blend."""
        if self.blend_proj is None:
            return None
        logits = self.blend_proj(x).unflatten(-1, (self.config.num_heads, -1))
        return at_least_fp32(logits).softmax(-1)

    def gate_mean(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        """The mean of sigmoid(gate logit) over positions and heads, an fp32 scalar, which the gate penalty multiplies.

        The sigmoid of the logit and not the gate itself: its gradient also reaches gates that are closed, and hardly those that
        are wide open (the L0 norm of hard-concrete gates has the same shape: Louizos et al. 2018, eq. 12).
        """
        if (logits := self.gate_logits(x, token)) is None:
            return super().gate_mean(x, token)
        return torch.sigmoid(at_least_fp32(logits)).mean()

    def _gate_input(
        self, x: Tensor, token: Tensor | None, before: Tensor | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """The input of `gate_proj`: x, or the tokens of the window, the present one first. Without `starts` a window also holds
        tokens of the document before."""
        if self.config.gate_input == "hidden":
            return x
        if token is None:
            raise ValueError('ska.gate_input is "token": the layer needs `token`, as `EchoLM.embed` gives it')
        window = self.config.gate_window
        if window == 1:
            return token
        return torch.cat([delayed(token, steps, before, starts) for steps in range(window)], -1)

    def _project(
        self,
        x: Tensor,
        token: Tensor | None,
        recent: Recent | None = None,
        *,
        starts: Tensor | None = None,
        real: Tensor | None = None,
        context: SequenceContext | None = None,
    ) -> tuple[Tensor, Recent | None]:
        """Raw queries, keys, values and gate logits side by side, as `normalize_and_gate` takes them: one product for all
        that is made of x, so that x and its gradient are passed over once. And, from what was recent, what is now."""
        config = self.config
        tokens_before = None if recent is None else recent.tokens
        if config.gate_window > 1 and tokens_before is None and token is not None:
            tokens_before = rows_before(token, config.gate_window - 1, context)
        weights = [projection.weight for projection in (self.q_proj, self.k_proj, self.v_proj)]
        hidden, gate = [], []
        if self.gate_proj is not None:
            gate = [self.gate_proj.weight]
        if self.context_gate_proj is not None:
            hidden = [self.context_gate_proj.weight]
        padding = []
        if x.dim() == 3:  # rows of a multiple of 16 bytes keep the products fast
            columns = sum(len(weight) for weight in weights + gate + hidden)
            padding.append(weights[0].new_zeros(-columns % 8, x.shape[-1]))
        gate_input = self._gate_input(x, token, tokens_before, starts)
        if gate_input is x:
            packed = side_by_side(x, weights + gate + padding)
        elif config.gate_window == 1 and not hidden:
            packed = torch.cat((side_by_side(x, weights), side_by_side(gate_input, gate + padding)), -1)
        else:
            packed = torch.cat((side_by_side(x, weights), side_by_side(gate_input, gate)), -1)
            if hidden + padding:
                packed = torch.cat((packed, side_by_side(x, hidden + padding)), -1)
        if not config.looks_back:
            return packed, None
        q, k, v, rest = (part.flatten(2) if part.dim() == 4 else part for part in self._unpack(packed))
        new = None
        if recent is not None:
            assert real is not None
            rows = (k, v, x[..., :0] if token is None else token)
            new = Recent(*(latest(r, old.shape[1], old, real) for r, old in zip(rows, recent, strict=True)))
        own = [k] if config.two_hop_heads else []
        keys_before, values_before = (None, None) if recent is None else (recent.keys, recent.values)
        if recent is None and context is not None:  # one message for both
            before = rows_before(torch.cat((k, v), -1), max(config.key_shift, config.value_shift), context)
            if before is not None:
                keys_before, values_before = before.split((k.shape[-1], v.shape[-1]), -1)
        k = delayed(k, config.key_shift, keys_before, starts)
        v = delayed(v, config.value_shift, values_before, starts)
        return torch.cat((q, k, v, rest, *own), -1), new

    @property
    def _looks_at_borders(self) -> bool:
        return self.config.looks_back or self.config.normalization == "sequence-max"

    @property
    def _recent_sizes(self) -> tuple[tuple[int, int], ...]:
        """The number of rows and the width of each part of `Recent`."""
        config = self.config
        tokens = self.k_proj.in_features if self.reads_token else 0
        return (
            (config.key_shift, config.num_heads * config.rank),
            (config.value_shift, self.v_proj.out_features),
            (config.gate_window - 1, tokens),
        )

    def _unpack(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config = self.config
        return unpack(packed, config.num_heads, config.rank, self.v_proj.out_features // config.num_heads)

    def _normalize_and_gate(self, packed: Tensor, longest: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised queries, normalised and gated keys, gated values, in the dtype of the projections: training and
        decoding round keys alike."""
        config = self.config
        bias = None if self.gate_proj is None else self.gate_proj.bias
        if bias is not None and self.context_gate_proj is not None:
            bias = torch.cat((bias, self.context_gate_proj.bias))
        if config.normalization == "l2":
            sizes = dict(heads=config.num_heads, rank=config.rank, width=self.v_proj.out_features // config.num_heads)
            q, k, v = normalize_and_gate(packed, bias, **sizes, kind=config.write_gate)
            return q, k, bind_next_keys(v, packed, bias, **sizes, kind=config.write_gate) if config.two_hop_heads else v
        q, k, v, logits = self._unpack(packed)
        if longest is not None:
            q, k = ((at_least_fp32(t) / longest.clamp(min=SMALLEST_NORM)).to(t.dtype) for t in (q, k))
        if bias is not None and config.write_gate != "none":
            gate = write_gate(at_least_fp32(logits[..., : config.num_heads]) + bias, config.write_gate)
            k, v = ((at_least_fp32(t) * gate[..., None]).to(t.dtype) for t in (k, v))
        return q, k, v

    def _project_out(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return self.out_proj(y.flatten(-2).to(dtype), self.eta)

    def initialize(self, generator: torch.Generator) -> None:
        # As in the paper, keys and queries start orthogonal, and the output starts at zero.
        nn.init.orthogonal_(self.q_proj.weight, generator=generator)
        nn.init.orthogonal_(self.k_proj.weight, generator=generator)
        if self.config.tied_start:
            self.q_proj.weight.copy_(self.k_proj.weight)
        normal_by_fan_in(self.v_proj.weight, generator)
        nn.init.zeros_(self.out_proj.weight)
        if self.gate_proj is not None:
            normal_by_fan_in(self.gate_proj.weight, generator)
            nn.init.zeros_(self.gate_proj.bias)
        if self.context_gate_proj is not None:
            normal_by_fan_in(self.context_gate_proj.weight, generator)
            nn.init.zeros_(self.context_gate_proj.bias)
        if self.blend_proj is not None:  # equal shares
            nn.init.zeros_(self.blend_proj.weight)
            nn.init.zeros_(self.blend_proj.bias)
        nn.init.constant_(self.eta, self.config.eta)
        if self.gamma_logit is not None:
            low, high = GAMMA_RANGE
            share = (self.config.gamma - low) / (high - low)
            nn.init.constant_(self.gamma_logit, torch.logit(torch.tensor(share)).item())
