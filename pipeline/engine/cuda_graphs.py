"""CUDA graphs of a micro-batch: forward and backward pass of all blocks become two launches.

The kernels of a small model's block take less time than their launches from Python, so that the GPU waits for the host. Captured
are the embedding and the blocks (`EchoLM.run_blocks`), whose shapes are the same in every micro-batch; the head, the loss and the
optimizer's step are not: the number of labels differs from batch to batch, and they are few launches. Gradients reach the
parameters through autograd, so ZeRO sees them as ever.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...kernels.sequence import SequenceContext
from ...models import EchoLM
from ...models.mixers.registry import mixer_class
from ..config import RunConfig

TOKENS_PER_DOCUMENT = 16  # the graph has room for the borders of as many documents as this average length gives


def why_not(config: RunConfig, device: torch.device) -> str | None:
    """The reason why a run trains without CUDA graphs, or None if it trains with them."""
    run = config.run
    if device.type != "cuda":
        return "there is no CUDA device"
    if not run.cuda_graphs:
        return "run.cuda_graphs is false"
    if run.zero_stage > 1:
        return f"run.zero_stage={run.zero_stage} exchanges gradients or weights within the passes: use stage 0 or 1"
    if run.sequence_parallel > 1:
        return "run.sequence_parallel shares sequences: its exchanges have sizes that the host reads"
    for kind in config.model.resolve(vocab_size=512).layers:
        if mixer_class(kind).reads_borders_on_host:
            return f"{kind} layers read document borders on the host"
    return None


def graphed_blocks(model: EchoLM) -> "GraphedBlocks | None":
    """The graphs of a model that trains with them."""
    return model.run_blocks if isinstance(model.run_blocks, GraphedBlocks) else None


class GraphedBlocks:
    """Replaces `model.run_blocks` by a CUDA graph of it; calls that the graph cannot serve run without it.

    The graph is captured at the first training pass, for its shape of tokens. Passes of another shape, with more documents than
    there is room for, with a write mask or without gradients run as before; `take_eager_reason` says why training passes did. It
    holds the activations of one micro-batch for good, as eager training does in its cache between the passes.
    """

    def __init__(self, model: EchoLM):
        self._model = model
        self._eager = model.run_blocks
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._graphed: Any = None
        self._key: tuple[torch.Size, bool, bool] | None = None
        self._addresses: list[int] = []
        self._gradients: dict[torch.dtype, Tensor] = {}
        self._eager_reason: str | None = None
        self._reason_taken = False
        model.run_blocks = self

    def __call__(
        self,
        tokens: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        context: SequenceContext | None = None,
        write_mask: Tensor | None = None,
        return_gate_mean: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Run all blocks, by the CUDA graph where it fits; arguments and result are those of `EchoLM.run_blocks`."""
        key = (tokens.shape, cu_seqlens is not None, return_gate_mean)
        if write_mask is not None or context is not None or not torch.is_grad_enabled():
            reason = "not a training pass of whole rows"
        elif self._key not in (None, key):
            reason = f"a micro-batch has the shape {tuple(tokens.shape)}, the graph {tuple(self._key[0])}"
        elif cu_seqlens is not None and len(cu_seqlens) > self._room(tokens):
            reason = f"a micro-batch has {len(cu_seqlens) - 1:,} documents in {tokens.numel():,} tokens"
        else:
            reason = None
        if reason is not None:
            if torch.is_grad_enabled():
                self._eager_reason = self._eager_reason or reason
            return self._eager(
                tokens, cu_seqlens=cu_seqlens, context=context, write_mask=write_mask, return_gate_mean=return_gate_mean
            )
        inputs = (tokens,)
        if cu_seqlens is not None:  # leading zeros repeat the border at the first token and mark no other
            inputs = (tokens, F.pad(cu_seqlens, (self._room(tokens) - len(cu_seqlens), 0)))
        addresses = [parameter.data_ptr() for parameter in self._parameters]
        if self._graphed is None or addresses != self._addresses:  # loading a checkpoint may move weights
            self._graphed = None  # frees the memory of an earlier one
            self._graphed = self._capture(inputs, return_gate_mean)
            self._key, self._addresses = key, addresses
        self._prepare_gradients()
        result = self._graphed(*inputs, *self._parameters)
        return result if return_gate_mean else (result, None)

    @staticmethod
    def _room(tokens: Tensor) -> int:
        """The number of entries of `cu_seqlens` for which the graph has room."""
        return 1 + len(tokens) + tokens.numel() // TOKENS_PER_DOCUMENT

    def take_eager_reason(self) -> str | None:
        """Return why a training pass first ran without the graph, once; otherwise None."""
        if self._reason_taken or self._eager_reason is None:
            return None
        self._reason_taken = True
        return self._eager_reason

    def _capture(self, inputs: tuple[Tensor, ...], return_gate_mean: bool) -> Any:
        """Capture the passes over `inputs`, whose shapes all later ones have, as a function of tensors.

        They read the weights through leaves of their own that share the memory: autograd's nodes of the parameters themselves
        belong to the default stream, which must not wait for a stream that is captured.
        """
        part = _Blocks(self._model, self._eager, return_gate_mean)
        names = [name for name, parameter in part.named_parameters() if parameter.requires_grad]
        leaves = [nn.Parameter(parameter.detach()) for parameter in self._parameters]

        def run(*tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            own, weights = tensors[: len(inputs)], tensors[len(inputs) :]
            return functional_call(part, dict(zip(names, weights, strict=True)), own)

        samples = tuple(tensor.clone() for tensor in inputs)
        # Three warm-up passes on a side stream come first, for functions that are compiled at their first call.
        return torch.cuda.make_graphed_callables(run, (*samples, *leaves), allow_unused_input=True)

    def _prepare_gradients(self) -> None:
        """Give every parameter that has no gradient a zero one, before the backward pass adds to it.

        Autograd would otherwise take the graph's own buffers for gradients, which the next replay overwrites.
        """
        without = [parameter for parameter in self._parameters if parameter.grad is None]
        if len(without) < len(self._parameters):
            for parameter in without:
                parameter.grad = torch.zeros_like(parameter)
            return
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in without:
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for dtype, parameters in by_dtype.items():
            if dtype not in self._gradients:
                size = sum(parameter.numel() for parameter in parameters)
                self._gradients[dtype] = torch.zeros(size, dtype=dtype, device=parameters[0].device)
            flat = self._gradients[dtype].zero_()
            parts = flat.split([parameter.numel() for parameter in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)


class _Blocks(nn.Module):
    """`run_blocks` as a module whose inputs and outputs are all tensors, as `make_graphed_callables` requires."""

    def __init__(self, model: EchoLM, run_blocks: Any, return_gate_mean: bool):
        super().__init__()
        self.model = model
        self._run_blocks, self._return_gate_mean = run_blocks, return_gate_mean

    def forward(self, tokens: Tensor, cu_seqlens: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        x, gate_mean = self._run_blocks(tokens, cu_seqlens=cu_seqlens, return_gate_mean=self._return_gate_mean)
        return (x, gate_mean) if self._return_gate_mean else x
