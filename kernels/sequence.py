"""Sequence parallelism: each rank of a group holds one segment of every row; the ranks exchange one small message a layer.

Each rank summarises its segment, all ranks gather the summaries, and each rank combines those of the earlier ranks, in order, into
the initial state of its own segment. The size of a message does not depend on the length of the segment.

The backward pass gathers the gradients of all initial states. They are few and small, so each rank differentiates by itself
how its summary entered all later states.

With activation checkpointing, a region keeps the gathered summaries and sends nothing when it is recomputed (`kept_messages`).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from .documents import inner_borders
from .operator import uncompiled
from .predicted_sizes import PredictedSizes

Combine = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], int], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class SequenceContext:
    """The position of a rank in a group of ranks, each of which holds one segment of every row.

    Rows are `[B, T]`; rank i of the group holds the tokens `[i * T / world, (i + 1) * T / world)` of each. Segments are
    equal. All ranks must run the same layers in the same order, forward and backward: each layer is a collective.

    Make one for each batch: it caches what it derives from the document borders.

    Attributes:
        group: the ranks that share the rows, in the order of their segments; None is the default group.
        rank, world: this rank's number in the group, and the group's size. A world of 1 sends nothing.
        cu_seqlens: int32 or int64 `[documents + 1]`, *global* offsets into the flattened `B * T` tokens, the same on
            every rank; see `kernels/documents.py`. A border may fall anywhere, also on the edge of a segment.
        predicted_sizes: predictions of `number`, which their owner checks later; without, the host waits for each number.

    Raises:
        ValueError: rank, world and group do not go together.
    """

    group: dist.ProcessGroup | None
    rank: int
    world: int
    cu_seqlens: Tensor | None = None
    predicted_sizes: PredictedSizes | None = None
    _derived: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must be from 0 to world - 1 = {self.world - 1}, not {self.rank}")
        if self.world > 1:
            place = (dist.get_rank(self.group), dist.get_world_size(self.group))
            if place != (self.rank, self.world):
                raise ValueError(
                    f"rank and world are {self.rank} and {self.world}, but in the group they are {place[0]} and {place[1]}"
                )

    @uncompiled
    def starts(self, batch: int, length: int, device: torch.device) -> Tensor | None:
        """A mask of the tokens that start a document, of all ranks' segments: bool `[batch, world, length]`; `length` is that of
        a segment.

        None where every row is one document.

        Raises:
            ValueError: `cu_seqlens` does not fit rows of `world` segments of `length` tokens.
        """
        if self.cu_seqlens is None:
            return None
        key = ("starts", batch, length, device)
        if key not in self._derived:
            starts = inner_borders(self.cu_seqlens, batch, self.world * length, device)
            if starts is None:
                starts = torch.zeros(batch, self.world * length, dtype=torch.bool, device=device)
            starts[:, 0] = True
            self._derived[key] = starts.view(batch, self.world, length)
        return self._derived[key]

    @uncompiled
    def edges(self, batch: int, length: int, device: torch.device, reach: int = 1) -> tuple[Tensor, Tensor]:
        """The document borders at the edges of all segments, as combining the summaries needs them.

        Returns:
            reached: bool `[batch, world, reach]`, whether the first tokens continue a document of the segment before.
            unbroken: bool `[batch, world]`, whether a segment has no border after its first token.
        """
        key = ("edges", batch, length, device, reach)
        if key not in self._derived:
            starts = self.starts(batch, length, device)
            if starts is None:
                unbroken = torch.ones(batch, self.world, dtype=torch.bool, device=device)
                reached = torch.ones(batch, self.world, reach, dtype=torch.bool, device=device)
                reached[:, 0] = False
            else:
                unbroken = ~starts[:, :, 1:].any(-1)
                reached = starts[:, :, :reach].cumsum(-1) == 0
            self._derived[key] = reached, unbroken
        return self._derived[key]

    @uncompiled
    def local_cu_seqlens(self, batch: int, length: int, device: torch.device) -> Tensor | None:
        """The borders of this rank's segments as offsets into its `batch * length` tokens, with the start of each row.

        Operations take them together with an initial state. None where every row is one document.
        """
        if self.cu_seqlens is None:
            return None
        key = ("local", batch, length, device)
        if key not in self._derived:
            starts = self.own_starts(batch, length, device)
            assert starts is not None  # there are borders
            starts = starts.clone()
            starts[:, 0] = True
            offsets = starts.flatten().nonzero().squeeze(1)
            self._derived[key] = torch.cat((offsets, offsets.new_tensor([batch * length])))
        return self._derived[key]

    def own_starts(self, batch: int, length: int, device: torch.device) -> Tensor | None:
        """`starts` of this rank's segments, bool `[batch, length]`, or None where every row is one document."""
        starts = self.starts(batch, length, device)
        return None if starts is None else starts[:, self.rank]

    def number(
        self, weight: Tensor, shape: torch.Size, compute: Callable[[], Tensor], safe: Callable[[int], int]
    ) -> int:
        """The result of `compute()`, an integer derived from a layer's inputs on the device, or a predicted lower bound of it, on
        the host.

        It is cached by the layer's weight and the inputs' shape, so that a layer that is recomputed on the same batch gets the same
        number. The key has the weight's identity, not its address: under ZeRO 3 many weights share one address in turn.

        Args:
            safe: maps a batch's number to the prediction for the next batch.
        """
        key = (id(weight), weight._version, shape)
        if key not in self._derived:
            value = compute()
            predicted_sizes = self.predicted_sizes
            self._derived[key] = (
                int(value) if predicted_sizes is None else predicted_sizes.number((id(weight), shape), value, safe)
            )
        return self._derived[key]

    def segment(self, rows: Tensor, dim: int = 1) -> Tensor:
        """This rank's part of a tensor over whole rows.

        Raises:
            ValueError: the rows cannot be cut into `world` equal segments.
        """
        if rows.shape[dim] % self.world:
            raise ValueError(f"{rows.shape[dim]} tokens a row cannot be cut into {self.world} equal segments")
        return rows.chunk(self.world, dim)[self.rank]


def kept_messages() -> tuple[AbstractContextManager, AbstractContextManager]:
    """A `context_fn` of `torch.utils.checkpoint.checkpoint` that keeps the messages of `entering_state` for the recomputation.

    The recomputation must run the same layers in the same order. Messages of `gather_segments` are large; they are sent again.
    """
    messages: list[_Message] = []
    return _Region(messages, again=False), _Region(messages, again=True)


def known_summary(context: SequenceContext) -> tuple[Tensor, ...] | None:
    """This rank's `summary` of the next `entering_state` from the first computation, in a recomputed region; else None.

    With it the caller need not compute the summary again. Without gradients.
    """
    region = _REGION.get()
    if region is None or not region.again:
        return None
    gathered, _, shapes = region.peek()
    return tuple(part.clone() for part in _unpack(gathered[context.rank], shapes))


# The summaries of all ranks, the entering state, and the shapes of a summary.
_Message = tuple[Tensor, Tensor, list[torch.Size]]


class _Region:
    """A context in which `entering_state` stores its messages, or with `again` reuses them in the same order."""

    def __init__(self, messages: list[_Message], again: bool):
        self.messages, self.again = messages, again

    def __enter__(self) -> None:
        self._position = 0
        self._before = _REGION.set(self)

    def __exit__(self, *exception: object) -> None:
        _REGION.reset(self._before)

    def peek(self) -> _Message:
        return self.messages[self._position]

    def take(self) -> _Message:
        self._position += 1
        return self.messages[self._position - 1]


_REGION: ContextVar[_Region | None] = ContextVar("region", default=None)


@uncompiled  # collectives and small tensors: nothing to fuse
def entering_state(
    summary: Sequence[Tensor], initial: Sequence[Tensor], combine: Combine, context: SequenceContext, length: int
) -> tuple[Tensor, ...]:
    """The state at the start of this rank's segment: the summaries of the earlier ranks, combined in order.

    One all-gather of the packed summary and `length`, and one in the backward pass, of the packed gradient of the result. A region
    of `kept_messages` that is recomputed sends nothing.

    Args:
        summary: of this rank's segment, tensors of one dtype; shapes equal on all ranks.
        initial: what the first segment is entered with; gets no gradient.
        combine: `combine(entering, summary, i)` is what leaves segment i. Differentiable in the first two, and a
            function of nothing else that differs between ranks.
        length: tokens of this rank's segment.

    Returns:
        tensors of the shapes of `initial`.

    Raises:
        ValueError: the ranks hold segments of different lengths.
    """
    shapes = [part.shape for part in summary], [part.shape for part in initial]
    flat = _Enter.apply(_pack(summary), _pack(initial), combine, context, shapes, length)
    return _unpack(flat, shapes[1])


class _Enter(torch.autograd.Function):
    """Autograd function of `entering_state`."""

    @staticmethod
    def forward(ctx, summary, initial, combine, context, shapes, length):
        region = _REGION.get()
        if region is not None and region.again:
            gathered, state, _ = region.take()
        else:
            # Filled on the device: copying a number there would make the host wait for all queued work.
            gathered = all_gather(torch.cat((summary, summary.new_full((1,), length))), context)
            _check_lengths(gathered[:, -1], context)
            gathered = gathered[:, :-1]
            state = initial
            with torch.autocast(summary.device.type, enabled=False):
                for i in range(context.rank):
                    state = _fold(state, gathered[i], combine, i, shapes)
            if region is not None:
                region.messages.append((gathered, state, shapes[0]))
        ctx.save_for_backward(gathered, state)
        ctx.combine, ctx.context, ctx.shapes = combine, context, shapes
        return state.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dstate):
        gathered, state = ctx.saved_tensors
        rank, world = ctx.context.rank, ctx.context.world
        dstates = all_gather(dstate.contiguous(), ctx.context)
        if rank == world - 1:
            return torch.zeros_like(gathered[rank]), None, None, None, None, None
        own = gathered[rank].detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(dstate.device.type, enabled=False):
            states = []
            for i in range(rank, world - 1):
                state = _fold(state, own if i == rank else gathered[i], ctx.combine, i, ctx.shapes)
                states.append(state)
            (dsummary,) = torch.autograd.grad(states, own, list(dstates[rank + 1 :]))
        return dsummary, None, None, None, None, None


def _fold(state: Tensor, summary: Tensor, combine: Combine, i: int, shapes) -> Tensor:
    return _pack(combine(_unpack(state, shapes[1]), _unpack(summary, shapes[0]), i))


def _pack(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _unpack(flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    sizes = [math.prod(shape) for shape in shapes]
    return tuple(part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True))


def _check_lengths(lengths: Tensor, context: SequenceContext) -> None:
    """Check, once for each context, that all segments have one length: on a GPU the host must wait for the lengths."""
    if "equal" in context._derived:
        return
    context._derived["equal"] = True
    if len(set(lengths.tolist())) > 1:
        raise ValueError(f"segments must be equal, but the ranks hold {[int(n) for n in lengths]} tokens a row")


def all_gather(x: Tensor, context: SequenceContext) -> Tensor:
    """Gather `x` of every rank: `[world, *x.shape]`. With gloo, tensors on a GPU are sent through the host."""
    sent = _for_backend(x, context)
    gathered = sent.new_empty(context.world * sent.numel())
    dist.all_gather_into_tensor(gathered, sent.flatten(), group=context.group)
    return gathered.view(context.world, *sent.shape).to(x.device)


@uncompiled
def gather_segments(x: Tensor, context: SequenceContext) -> Tensor:
    """Gather `x` of every rank, `[world, *x.shape]`, with gradients. For attention, whose messages grow with the length.

    The backward pass is one reduce-scatter, in fp32 or better.
    """
    return x[None] if context.world == 1 else _Gather.apply(x, context)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, context):
        ctx.context = context
        return all_gather(x.contiguous(), context)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dgathered):
        wide = dgathered if dgathered.dtype == torch.float64 else dgathered.float()
        sent = _for_backend(wide.contiguous(), ctx.context)
        dx = torch.empty_like(sent[0])
        dist.reduce_scatter(dx, list(sent.unbind(0)), group=ctx.context.group)
        return dx.to(device=dgathered.device, dtype=dgathered.dtype), None


def _for_backend(x: Tensor, context: SequenceContext) -> Tensor:
    return x.cpu() if x.is_cuda and dist.get_backend(context.group) == "gloo" else x
