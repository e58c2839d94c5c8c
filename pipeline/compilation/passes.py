"""Passes of a model over tensors without values, by which the kernels that a training launches are found."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...kernels.sequence import SequenceContext
from ...models import ModelConfig, build_model

DOCUMENTS = 2  # borders in a batch of documents: their number decides on no kernel


@dataclass(frozen=True)
class Pass:
    """The sizes of a forward pass of a model.

    Attributes:
        rows, length: of the tokens; under sequence parallelism of whole rows.
        dtype: in which layers compute, "float32" or "bfloat16".
        autocast: the weights stay in fp32 and products round their factors.
        documents: whether rows hold document borders.
        segments: ranks that share each row.
        backward: whether a backward pass follows.
    """

    rows: int
    length: int
    dtype: Literal["float32", "bfloat16"]
    autocast: bool = False
    documents: bool = True
    segments: int = 1
    backward: bool = True


def run_pass(config: ModelConfig, sizes: Pass) -> None:
    """Run the pass on the device "meta": nothing is computed; inside of `recorded_kernels` its launches are recorded."""
    model = build_model(config, device="meta")
    if not sizes.autocast:
        model.to(getattr(torch, sizes.dtype))
    tokens = torch.zeros(sizes.rows, sizes.length, dtype=torch.int64, device="meta")
    borders = torch.zeros(1 + sizes.rows + DOCUMENTS, dtype=torch.int32, device="meta") if sizes.documents else None
    options: dict[str, Any] = {"cu_seqlens": borders}
    if sizes.segments > 1:
        context = _NoRanks(None, sizes.segments - 1, sizes.segments, borders)
        tokens, options = context.segment(tokens), {"context": context}
    rounds = _Autocast() if sizes.autocast and sizes.dtype == "bfloat16" else contextlib.nullcontext()
    with torch.set_grad_enabled(sizes.backward), rounds:
        total = model(tokens, head_fn=lambda x, weight: x.float().sum(), **options)
    if sizes.backward:
        total.backward()


class _NoRanks(SequenceContext):
    """A rank's position among others that do not exist; nothing depends on values of tensors."""

    def __post_init__(self) -> None:
        self._derived["equal"] = True  # segments have one length: there are no others to ask

    def local_cu_seqlens(self, batch: int, length: int, device: torch.device) -> Tensor | None:
        borders = 1 + batch + DOCUMENTS
        return None if self.cu_seqlens is None else torch.zeros(borders, dtype=torch.int32, device=device)

    def number(
        self, weight: Tensor, shape: torch.Size, compute: Callable[[], Tensor], safe: Callable[[int], int]
    ) -> int:
        return 0


class _Autocast(TorchFunctionMode):
    """`torch.autocast` in bf16, which does not exist for the device "meta": rounds the factors of products."""

    PRODUCTS = (F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.mm)
    PRODUCTS += (F.scaled_dot_product_attention,)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.PRODUCTS:
            args = [x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        return func(*args, **(kwargs or {}))
