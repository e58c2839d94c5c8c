"""EchoLM: embeddings, blocks, logits; one class for Echo and all baselines, which differ in their config alone."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.sequence import SequenceContext
from .config import ModelConfig
from .feedforward import make_feedforward
from .initialization import initialize, normal_by_fan_in
from .mixers.registry import mixer_class
from .norm import at_least_fp32, make_norm, unit_rms


class Block(nn.Module):
    """A pre-norm block: x + mixer(norm(x)), then x + feedforward(norm(x)). `token` is the second of what `EchoLM.embed` gives;
    SKA takes it."""

    def __init__(self, config: ModelConfig, kind: str):
        super().__init__()
        self.mixer_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.mixer = mixer_class(kind).build(config)
        self.feedforward_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.feedforward = make_feedforward(config)

    def forward(
        self,
        x: Tensor,
        token: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        context: SequenceContext | None = None,
        write_mask: Tensor | None = None,
        return_gate_mean: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`[B, T, d_model]`; with `return_gate_mean`, for a mixer with a write gate, a pair of that and its `gate_mean`."""
        inputs = self._inputs(token=token, write_mask=write_mask)
        normed = self.mixer_norm(x)
        gate_mean = self.mixer.gate_mean(normed, token) if return_gate_mean else None
        x = x + self.mixer(normed, cu_seqlens=cu_seqlens, context=context, **inputs)
        x = x + self.feedforward(self.feedforward_norm(x))
        return x if gate_mean is None else (x, gate_mean)

    def extend(self, x: Tensor, cache: Any, real: Tensor, token: Tensor | None = None) -> tuple[Tensor, Any]:
        mixed, cache = self.mixer.extend(self.mixer_norm(x), cache, real, **self._inputs(token=token))
        x = x + mixed
        return x + self.feedforward(self.feedforward_norm(x)), cache

    def step(self, x: Tensor, cache: Any, token: Tensor | None = None) -> tuple[Tensor, Any]:
        mixed, cache = self.mixer.step(self.mixer_norm(x), cache, **self._inputs(token=token))
        x = x + mixed
        return x + self.feedforward(self.feedforward_norm(x)), cache

    def _inputs(self, **inputs: Tensor | None) -> dict[str, Tensor]:
        """The optional inputs that are not None and that the mixer uses."""
        return {name: value for name, value in inputs.items() if value is not None and name in self.mixer.inputs}


class Blocks(nn.ModuleList):
    """A list of blocks whose type is known: `nn.ModuleList` declares modules of any kind."""

    def __iter__(self) -> Iterator[Block]:
        return cast(Iterator[Block], super().__iter__())


class EchoLM(nn.Module):
    """A causal language model. Build it with `build_model` or `from_pretrained`, which draw no global random number."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        # Not by the constructor, whose random initialisation on "meta" would import torch._dynamo, which takes a second, for
        # values that are never used.
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.d_model), freeze=False)
        self.blocks = Blocks(Block(own, kind) for own, kind in zip(config.of_layers(), config.layers, strict=True))
        self.reads_token = any(block.mixer.reads_token for block in self.blocks)
        self.has_write_gate = any(block.mixer.has_write_gate for block in self.blocks)
        self.final_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        logits_to_keep: Tensor | None = None,
        context: SequenceContext | None = None,
        write_mask: Tensor | None = None,
        return_gate_mean: bool = False,
        head_fn: Callable[[Tensor, Tensor], Any] = F.linear,
    ) -> Any:
        """Logits of the next token, or the result of another `head_fn`.

        Args:
            tokens: int64 `[B, T]`.
            cu_seqlens: int32 or int64 `[documents + 1]`, document borders in the flattened `B * T` tokens; every row
                start is a border. Nothing passes a border.
            logits_to_keep: the n positions whose logits are wanted, as bool `[B, T]` or as int64 `[n]` of the flattened tokens
                (which a GPU needs not count first); default all. Where few labels count this saves most of the head,
                a third of a small model's work.
            context: tokens and `logits_to_keep` are this rank's segments of longer rows; the context holds the borders of the
                whole rows, so `cu_seqlens` must be None. Gradients of parameters are this rank's share: their sum
                over the group is the gradient. See `kernels/sequence.py`.
            write_mask: bool `[B, T]`, the positions that SKA layers write into their sums (the paper's prefix mask); default
                all. For whole rows in one pass, not for segments or decoding.
            return_gate_mean: return how far the write gates were open, too; for models that have some.
            head_fn: function of the normed residual stream, `[B, T, d_model]` or `[n, d_model]`, and the matrix of the logits
                `[vocab_size, d_model]`. Training computes the loss here, without ever holding all logits.

        Returns:
            `[B, T, vocab_size]`, or `[n, vocab_size]` in the order of `logits_to_keep`, in the dtype of the weights; or the
            result of `head_fn`. With `return_gate_mean` a pair: that, and the mean of `gate_mean` over the layers that have a
            write gate, an fp32 scalar.

        Raises:
            ValueError: borders are given twice, or do not fit the tokens; `write_mask` beside a context of several ranks;
                `return_gate_mean` of a model without write gates.
        """
        if return_gate_mean and not self.has_write_gate:
            raise ValueError("return_gate_mean must be False: no layer of this model has a write gate")
        if context is not None:
            if cu_seqlens is not None:
                raise ValueError("cu_seqlens must be None beside a context, which holds the borders of whole rows")
            if context.world == 1:
                cu_seqlens, context = context.cu_seqlens, None
            elif write_mask is not None:
                raise ValueError("write_mask must be None beside a context of several ranks: it needs whole rows")
        x, gate_mean = self.run_blocks(
            tokens, cu_seqlens=cu_seqlens, context=context, write_mask=write_mask, return_gate_mean=return_gate_mean
        )
        if logits_to_keep is not None:
            by_mask = logits_to_keep.dtype == torch.bool
            x = x[logits_to_keep] if by_mask else x.flatten(0, 1).index_select(0, logits_to_keep)
        result = self.logits(x, head_fn)
        return (result, gate_mean) if return_gate_mean else result

    def run_blocks(
        self,
        tokens: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        context: SequenceContext | None = None,
        write_mask: Tensor | None = None,
        return_gate_mean: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Embedding and all blocks, the part of `forward` whose shapes depend on those of `tokens` alone.

        Training may replace it by a CUDA graph of itself (`pipeline/engine/cuda_graphs.py`).

        Returns:
            the residual stream `[B, T, d_model]`, and the mean of the write gates, or None without `return_gate_mean`.
        """
        x, token = self.embed(tokens)
        gate_means = []
        for block in self.blocks:
            options = dict(cu_seqlens=cu_seqlens, context=context, write_mask=write_mask)
            if return_gate_mean and block.mixer.has_write_gate:
                x, gate_mean = block(x, token, **options, return_gate_mean=True)
                gate_means.append(gate_mean)
            else:
                x = block(x, token, **options)
        return x, torch.stack(gate_means).mean() if return_gate_mean else None

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens `[...]` to the residual stream that the first block gets, `[..., d_model]`, and to what write gates with
        `gate_input` "token" see in every block: the same at unit RMS, as embeddings start at 0.02 (see `gate_scale`); None without
        such gates."""
        x = self.embedding(tokens)
        if not self.reads_token:
            return x, None
        if self.config.gate_scale == "table":
            return x, (x / at_least_fp32(self.embedding.weight.detach()).square().mean().sqrt()).to(x.dtype)
        return x, unit_rms(x, self.config.norm_eps)

    def logits(self, x: Tensor, head_fn: Callable[[Tensor, Tensor], Any] = F.linear) -> Any:
        """Residual stream `[..., d_model]` to logits `[..., vocab_size]`, or to the result of another `head_fn`."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return head_fn(self.final_norm(x), weight)

    def initialize(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02, generator=generator)
        if self.head is not None:
            normal_by_fan_in(self.head.weight, generator)


def check_device(config: ModelConfig, device: torch.device | str) -> None:
    """Refuse a device on which a layer cannot compute.

    Raises:
        UserError: a package is missing there; how to install it is said.
    """
    for kind in dict.fromkeys(config.layers):
        mixer_class(kind).check_device(torch.device(device))


def build_model(config: ModelConfig, *, seed: int = 0, device: torch.device | str | None = None) -> EchoLM:
    """Build a freshly initialised fp32 model: the same weights for the same config and seed, on any device.

    Args:
        device: default CPU. "meta" gives shapes without memory or values.

    Raises:
        UserError: a layer needs a package on this device that is not installed.
    """
    check_device(config, device or "cpu")
    with torch.device("meta"):  # draws nothing from the global generator
        model = EchoLM(config)
    if torch.device(device or "cpu").type == "meta":
        return model
    model.to_empty(device="cpu")
    initialize(model, seed)
    return model.to(device or "cpu")
