"""The fused Mamba-2 scan: all kernels in order, registered so that autograd, autocast, torch.compile and checkpointing treat
them as a whole."""

import functools

import torch
from torch import Tensor

from ...available import INTERPRETER
from ...documents import document_ids
from ...launch import Launcher, cdiv, next_power_of_2
from ...operator import register
from .decay_backward import decay_backward
from .decays import LOG2_E, chunk_decays
from .keys_backward import keys_backward
from .outputs import chunk_outputs
from .plan import Plan, plan_for, split_heads, split_row
from .states import pass_segments, walk_states
from .values_backward import values_backward


def ssd_fused(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    *,
    chunk_size: int | None,
    starts: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The Mamba-2 scan by Triton kernels, with the arguments and results of `ssd_naive`, and `d x` in the output. x, b and c
    enter products in the dtype of x, all sums are in fp32."""
    ids = None if starts is None else document_ids(starts).to(torch.int32)
    wide = (None if t is None else t.float().contiguous() for t in (d, state))
    b, c = b.to(x.dtype).contiguous(), c.to(x.dtype).contiguous()
    y, final, _ = torch.ops.echo_lm.ssd(
        x.contiguous(), dt.float().contiguous(), a.float(), b, c, *wide, ids, chunk_size, KEEP_STATES
    )
    return y, final


KEEP_STATES = False  # for the backward pass; otherwise it computes them again

HEADS = 16  # of a program of the kernels that work on vectors alone


class _Kernels:
    """The compiled launches for one kind of call: all that does not depend on batch, length and heads is fixed here."""

    def __init__(self, dtype: torch.dtype, width: int, size: int, plan: Plan, skip: bool, documents: bool):
        self.plan, self.width, self.size = plan, width, size
        block_width, block_size = (max(16, next_power_of_2(n)) for n in (width, size))
        rows = min(plan.state_rows, block_size)
        self.parts = cdiv(block_size, rows)
        vectors = dict(S=plan.chunk, BH=HEADS, num_warps=4)
        self.decays = Launcher(chunk_decays, **vectors, LOG2=LOG2_E, DOCUMENTS=documents)
        self.decay_backward = Launcher(decay_backward, **vectors, SKIP=skip)
        common = dict(P=width, N=size, S=plan.chunk, BP=block_width, BN=block_size)
        common |= dict(PRECISION="tf32x3" if dtype == torch.float32 else "ieee", INTERPRET=INTERPRETER)

        def launcher(kernel, launch, **options):
            return Launcher(kernel, num_warps=launch.warps, STAGES=launch.stages, **common | options)

        def walk(begin: str, store: bool, reverse: bool) -> Launcher:
            return launcher(walk_states, plan.walk, BN=rows, FROM=begin, STORE=store, REVERSE=reverse)

        self.sum_segments, self.pass_segments, self.walk, self.walk_segments = {}, {}, {}, {}
        for reverse in (False, True):
            for begin in ("zero", "initial"):
                self.walk[reverse, begin] = walk(begin, True, reverse)
                self.pass_segments[reverse, begin] = Launcher(
                    pass_segments, P=width, N=size, BE=256, INITIAL=begin == "initial", REVERSE=reverse, num_warps=4
                )
            self.sum_segments[reverse] = walk("zero", False, reverse)
            self.walk_segments[reverse] = walk("segments", True, reverse)
        options = dict(SKIP=skip, DOCUMENTS=documents)
        self.outputs = launcher(chunk_outputs, plan.outputs, **options)
        self.values_backward = launcher(values_backward, plan.values_backward, **options)
        self.keys_backward = launcher(keys_backward, plan.keys_backward)


@functools.cache
def _kernels(device: int | None, *kind) -> _Kernels:
    """The cached launches for a kind of call on a device; compiled code is loaded on the device that is current at the first
    launch."""
    return _Kernels(*kind)


class _Call:
    """The sizes of one call, and the steps that forward and backward share."""

    def __init__(self, x: Tensor, b: Tensor, d: Tensor | None, ids: Tensor | None, chunk: int | None):
        self.x, self.ids = x, ids
        self.batch, self.length, self.heads, self.width = x.shape
        self.groups, self.size = b.shape[2:]
        plan = plan_for(x.dtype, self.length, self.size, chunk)
        kind = x.dtype, self.width, self.size, plan, d is not None, ids is not None
        self.kernels = _kernels(x.device.index, *kind)
        self.chunks = cdiv(self.length, plan.chunk)
        self.tokens = self.chunks * plan.chunk
        self.sizes = self.length, self.chunks, self.heads, self.groups
        self.programs = self.batch * self.chunks
        self.share = split_heads(self.programs * self.groups, self.heads // self.groups)
        self.splits = cdiv(self.heads // self.groups, self.share)
        walks = self.batch * self.heads * self.kernels.parts
        self.segments = split_row(walks, self.chunks)

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def new_states(self) -> Tensor:
        """An empty tensor for the state of each chunk, `[B, C, H, N, P]`."""
        return self.new(self.batch, self.chunks, self.heads, self.size, self.width, dtype=self.x.dtype)

    def vectors(self, count: int) -> tuple[Tensor, ...]:
        """Empty fp32 vectors per head and token, `[B, H, C * S]` each."""
        return self.new(count, self.batch, self.heads, self.tokens).unbind()

    def decays(self, dt: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        """Compute the cumulative decays of all chunks: steps, log, enter, leave and keep of decays.py."""
        vectors = (*self.vectors(4), self.new(self.batch, self.heads, self.chunks))
        grid = self.programs, cdiv(self.heads, HEADS)
        self.kernels.decays(grid, dt, a, self.ids, *vectors, self.length, self.chunks, self.heads)
        return vectors

    def walk(
        self, reverse: bool, x: Tensor, b: Tensor, decays: tuple[Tensor, ...], initial: Tensor | None, states: Tensor
    ):
        """Fill `states`, in reverse with gradients, and return the state behind the last chunk (before the first)."""
        kernels, (steps, _, enter, leave, keep) = self.kernels, decays
        grid = self.batch * self.heads * self.segments, kernels.parts
        final = self.new(self.batch, self.heads, self.width, self.size)
        inputs, sizes = (x, b, steps, enter, leave, keep), (*self.sizes, self.segments)
        if self.segments == 1:
            begin = "zero" if initial is None else "initial"
            kernels.walk[reverse, begin](grid, *inputs, initial, None, None, final, states, *sizes)
        else:
            ends, keeps = self.enter_segments(reverse, inputs, initial)
            kernels.walk_segments[reverse](grid, *inputs, None, ends, keeps, final, states, *sizes)
        return final

    def enter_segments(
        self, reverse: bool, inputs: tuple[Tensor, ...], initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The state before each segment, and the decay from its start to its end."""
        kernels, rows, numbers = self.kernels, self.batch * self.heads, self.size * self.width
        ends, keeps = self.new(rows, self.segments, numbers), self.new(rows, self.segments)
        grid = rows * self.segments, kernels.parts
        kernels.sum_segments[reverse](grid, *inputs, None, ends, keeps, None, None, *self.sizes, self.segments)
        begin = "zero" if initial is None else "initial"
        kernels.pass_segments[reverse, begin]((rows, cdiv(numbers, 256)), ends, keeps, initial, self.segments)
        return ends, keeps


def _forward(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    state: Tensor | None,
    ids: Tensor | None,
    chunk_size: int | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and with `save` the state that each chunk enters with."""
    call = _Call(x, b, d, ids, chunk_size)
    y, states = torch.empty_like(x), call.new_states()
    with torch.cuda.device_of(x):
        decays = call.decays(dt, a)
        final = call.walk(False, x, b, decays, state, states)
        grid = call.programs, call.groups * call.splits
        call.kernels.outputs(grid, x, b, c, d, states, *decays[:3], ids, y, *call.sizes, call.share)
    return y, final, states if save else x.new_empty(0)


def _fake_forward(x, dt, a, b, c, d, state, ids, chunk_size, save):
    batch, length, heads, width = x.shape
    size = b.shape[-1]
    chunks = -(-length // plan_for(x.dtype, length, size, chunk_size).chunk)
    final = x.new_empty(batch, heads, width, size, dtype=torch.float32)
    return torch.empty_like(x), final, x.new_empty((batch, chunks, heads, size, width) if save else (0,))


def _backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    state: Tensor | None,
    ids: Tensor | None,
    states: Tensor,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, a, b, c, d and the entering state."""
    call = _Call(x, b, d, ids, chunk_size)
    kernels, size = call.kernels, call.kernels.plan.chunk
    dx, db, dc, ddt = (torch.empty_like(t) for t in (x, b, c, dt))
    dstates = call.new_states()
    inner = call.new(call.batch, call.heads, call.chunks)
    dproducts = call.new(call.splits, call.programs, call.groups, size, size)
    partial = call.new(2, call.batch, call.chunks, call.heads)
    dsteps, dskips, later, earlier, kept, old = call.vectors(6)
    with torch.cuda.device_of(x):
        decays = call.decays(dt, a)
        steps, log, enter, leave, keep = decays
        if not states.numel():
            states = call.new_states()
            call.walk(False, x, b, decays, state, states)
        dinitial = call.walk(True, dy, c, decays, dfinal, dstates)
        inputs, outputs = (x, dy, b, c), (dx, dsteps, dskips, later, earlier, dproducts)
        grid = call.programs, call.groups * call.splits
        kernels.values_backward(grid, *inputs, d, dstates, steps, log, leave, ids, *outputs, *call.sizes, call.share)
        matrices, weights = (states, dstates), (steps, enter, leave, keep)
        grid = call.programs, 2 * call.groups
        kernels.keys_backward(
            grid, *inputs, *matrices, *weights, dproducts, db, dc, kept, old, inner, *call.sizes, call.splits
        )
        sums = steps, dsteps, dskips, later, earlier, kept, old, inner
        grid = call.programs, cdiv(call.heads, HEADS)
        kernels.decay_backward(grid, a, *sums, ddt, *partial.unbind(), call.length, call.chunks, call.heads)
    da, dd = partial.flatten(1, 2).sum(1)
    return dx, ddt, da.clone(), db, dc, dd.clone(), dinitial


def _fake_backward(dy, dfinal, x, dt, a, b, c, d, state, ids, states, chunk_size):
    like = torch.empty_like
    batch, _, heads, width = x.shape
    dinitial = x.new_empty(batch, heads, width, b.shape[-1], dtype=torch.float32)
    return like(x), like(dt), like(a), like(b), like(c), like(a), dinitial


def _save(ctx, inputs, output):
    *tensors, chunk_size, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.chunk_size = chunk_size
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dfinal, _):
    saved = ctx.saved_tensors  # once: a checkpoint refuses a second access
    dy = torch.zeros_like(saved[0]) if dy is None else dy.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    *gradients, dd, dinitial = torch.ops.echo_lm.ssd_backward(dy, dfinal, *saved, ctx.chunk_size)
    wanted = ctx.needs_input_grad
    return *gradients, dd if wanted[5] else None, dinitial if wanted[6] else None, None, None, None


register("ssd_backward", _backward, _fake_backward)
register("ssd", _forward, _fake_forward, _save, _differentiate)
