"""The SKA mixer: projections, normalisation and write gate around `ska_attention` (arXiv 2605.06997 §3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.ska import ska_attention
from ..config import SKAConfig
from ..initialization import normal_by_fan_in
from ..norm import at_least_fp32

SMALLEST_NORM = 1e-6
GAMMA_RANGE = (1.0, 1.5)


class SKA(nn.Module):
    """[B, T, d_model] -> [B, T, d_model]."""

    def __init__(self, d_model: int, config: SKAConfig):
        super().__init__()
        heads, keys = config.num_heads, config.num_heads * config.rank
        self.config = config
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.gate_proj = None if config.write_gate == "none" else nn.Linear(d_model, heads)
        self.eta = nn.Parameter(torch.empty(heads), requires_grad=config.learn_eta)
        self.gamma_logit = nn.Parameter(torch.empty(heads)) if config.learn_gamma else None

    def forward(self, x: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
        q, k, v = self._project(x, cu_seqlens)
        y = ska_attention(q, k, v, **self._options(), cu_seqlens=cu_seqlens)
        return self._read_out(y, x.dtype)

    def _options(self) -> dict:
        config = self.config
        return dict(
            mode=config.mode,
            power=config.power,
            ridge=config.ridge,
            scale=self.gamma(),
            chunk_size=config.chunk_size,
            value_lag=config.value_lag,
        )

    def gamma(self) -> float | Tensor:
        """The factor s of each filter step: a float, or `[H]`."""
        if self.gamma_logit is None:
            return self.config.gamma
        low, high = GAMMA_RANGE
        return low + (high - low) * torch.sigmoid(at_least_fp32(self.gamma_logit))

    def gate(self, x: Tensor) -> Tensor | None:
        """What multiplies keys and values before they are written: `[..., H]` in [0, 1], or None."""
        if self.gate_proj is None:
            return None
        logits = at_least_fp32(self.gate_proj(x))
        if self.config.write_gate == "sqrt-sigmoid":
            return torch.exp(0.5 * F.logsigmoid(logits))
        return (1.2 * torch.sigmoid(logits) - 0.1).clamp(0.0, 1.0)

    def _project(self, x: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, gated keys and gated values, `[..., H, *]`."""
        heads = (self.config.num_heads, -1)
        q, k, v = (at_least_fp32(proj(x)).unflatten(-1, heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.normalization == "l2":
            q, k = (F.normalize(t, dim=-1, eps=SMALLEST_NORM) for t in (q, k))
        gate = self.gate(x)
        if gate is not None:
            k, v = k * gate[..., None], v * gate[..., None]
        return q, k, v

    def _read_out(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return self.out_proj((y * self.eta[:, None]).flatten(-2).to(dtype))

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
