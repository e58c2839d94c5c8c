"""The interface of sequence mixers: computation and costs. A new mixer is a subclass in its own file (docs/guides/extending.md)."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ...kernels.sequence import SequenceContext
from ..common.config import Config
from ..config import ModelConfig
from .registry import SegmentMessage


class SequenceMixer(nn.Module, ABC):
    """Base class of sequence mixers: causal layers `[B, T, d_model]` -> `[B, T, d_model]` that mix along T, with closed forms
    of their costs.

    Attributes:
        kind: the name in `layers`, set by `register`.
        options: the class of its section of a model config.
        inputs: which of the optional inputs `token` and `write_mask` of `forward` it takes.
        reads_borders_on_host: whether the host waits for document borders in `forward` on a GPU, which no CUDA graph can hold.
    """

    kind: ClassVar[str]
    options: ClassVar[type[Config]]
    inputs: ClassVar[frozenset[str]] = frozenset()
    reads_borders_on_host: ClassVar[bool] = False

    # --- Costs of one layer, as functions of the model's config. A multiply-add counts as 2 FLOPs. ---

    @staticmethod
    @abstractmethod
    def num_parameters(config: ModelConfig) -> int:
        """Parameters of the layer."""

    @staticmethod
    @abstractmethod
    def mixing_flops(config: ModelConfig, length: int) -> float:
        """Forward FLOPs per token over rows of `length` tokens, without the products with the layer's weight matrices."""

    @staticmethod
    @abstractmethod
    def mixing_decode_flops(config: ModelConfig, context: int) -> float:
        """FLOPs of decoding one token after `context` tokens, without the products with the layer's weight matrices."""

    @staticmethod
    @abstractmethod
    def state_bytes(config: ModelConfig, context: int, bytes_per_number: int) -> int:
        """Bytes of the layer's decoding state for one sequence after `context` tokens: those of what `init_cache` and `extend`
        return. `bytes_per_number` is that of the weights."""

    @staticmethod
    @abstractmethod
    def segment_message(config: ModelConfig, length: int, batch: int, bytes_per_number: int) -> SegmentMessage:
        """Bytes of the layer's messages under sequence parallelism, for segments of `length` tokens of `batch` rows.

        Raises:
            UserError: the mixer cannot be trained on segments.
        """

    @staticmethod
    @abstractmethod
    def kept_numbers(config: ModelConfig) -> int:
        """Count of numbers per token that the layer keeps for its backward pass."""

    # --- Building ---

    @classmethod
    @abstractmethod
    def build(cls, config: ModelConfig) -> Self:
        """Build the layer of a model with this config; its parameters are not yet initialised."""

    @abstractmethod
    def initialize(self, generator: torch.Generator) -> None:
        """Give every parameter its initial value, drawing from `generator` alone."""

    # --- The layer: one function, in parallel, from a cache, and token by token ---

    @abstractmethod
    def forward(
        self, x: Tensor, *, cu_seqlens: Tensor | None = None, context: SequenceContext | None = None, **inputs: Tensor
    ) -> Tensor:
        """Apply the layer to all tokens at once (the parallel form); `inputs` are those that the class lists in `inputs`."""

    @abstractmethod
    def init_cache(self, batch: int, like: Tensor) -> Any:
        """The cache of rows without tokens; `like` gives dtype and device."""

    def random_cache(self, batch: int, like: Tensor, context: int) -> Any:
        """A cache of the size that `context` tokens leave, filled with arbitrary numbers, for timing."""
        return self.init_cache(batch, like)

    @abstractmethod
    def extend(self, x: Tensor, cache: Any, real: Tensor, **inputs: Tensor) -> tuple[Tensor, Any]:
        """Process further tokens `[B, T, d_model]` from a cache; `real` `[B, T]` is False at padding, which stands at row ends."""

    @abstractmethod
    def step(self, x: Tensor, cache: Any, **inputs: Tensor) -> tuple[Tensor, Any]:
        """Decode one token per row, `[B, d_model]`."""

    # --- Optional parts, which some mixers override ---

    @classmethod
    def check_device(cls, device: torch.device) -> None:
        """Refuse a device on which the layer cannot compute.

        Raises:
            UserError: a package is missing there; how to install it is said.
        """

    @property
    def reads_token(self) -> bool:
        """Whether the layer needs the input `token`, the token's embedding at unit RMS."""
        return False

    @property
    def has_write_gate(self) -> bool:
        """Whether the layer has a write gate, and so `gate_mean`."""
        return False

    def gate_mean(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        """The mean of the write gate over positions and heads, a scalar.

        Raises:
            ValueError: the layer has no write gate (`has_write_gate`).
        """
        raise ValueError(f"{type(self).__name__} has no write gate")

    def prefill_segment(self, segment: int, length: int) -> int:
        """The number of tokens that prefill may process at once, at most `segment`, for prompts of `length` tokens.

        Raises:
            ValueError: `segment` does not fit the layer.
        """
        return segment
