"""The kernels in order, as one operator that autograd, autocast, torch.compile and checkpointing see as a whole."""

import os

import torch
import triton
from torch import Tensor

from ...documents import document_ids
from ..state import SKAState
from .factor import factor
from .local import local_gram
from .read import read_forward
from .read_backward import read_backward, step_backward
from .sums import chunk_sums, scan_chunks
from .write_backward import write_backward

# The interpreter, which CI runs, knows no bf16: it multiplies the parts as floats.
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"


def ska_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mode: str,
    power: int,
    ridge: float,
    scale: Tensor,
    chunk_size: int,
    value_lag: bool,
    starts: Tensor | None,
    state: SKAState,
) -> tuple[Tensor, SKAState]:
    """The arguments and results of `ska_naive`; q, k and v may be in half precision, sums and solves are fp32."""
    rank, width = q.shape[-1], v.shape[-1]
    ids = None if starts is None else document_ids(starts).to(torch.int32)
    initial = torch.cat(tuple(part.float() for part in state[:3]), 2)
    tile = min(64 if max(rank, width) <= 64 else 32, max(16, triton.next_power_of_2(q.shape[1])))
    y, final, *_ = torch.ops.echo_lm.ska(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        scale.float(),
        initial,
        state.last_key.float().contiguous(),
        ids,
        mode == "exact",
        power,
        ridge,
        chunk_size if mode == "chunk" else tile,
        value_lag,
        torch.is_grad_enabled(),
    )
    return y, SKAState(*final.split((rank, rank, width), 2), k[:, -1].float())


class _Shape:
    """Sizes, grids and constexprs that the launches of one call share."""

    def __init__(self, q: Tensor, v: Tensor, ids: Tensor | None, exact: bool, chunk_size: int, lag: bool):
        self.batch, self.length, self.heads, self.rank = q.shape
        self.width = v.shape[-1]
        self.size = chunk_size
        self.chunks = triton.cdiv(self.length, chunk_size)
        self.numbers = (2 * self.rank + self.width) * self.rank  # of a state
        self.programs = self.batch * self.chunks * self.heads
        self.padded_rank = 16 * triton.cdiv(self.rank, 16)
        block_rank = max(16, triton.next_power_of_2(self.rank))
        block_width = max(16, triton.next_power_of_2(self.width))
        self.rows = min(chunk_size, 64 if max(block_rank, block_width) <= 64 else 32)
        # bf16 is its own leading part, but the exact form's products of three parts by one come out wrong under
        # Triton 3.6 on Hopper (docs/kernels.md): it pays for parts that are zero.
        whole = q.dtype == torch.bfloat16 and not exact
        self.precision = dict(INPUT_PARTS=1 if whole else 3, INTERPRET=INTERPRET)
        # Where inputs are in half precision, plain products may be good to 2^-16.
        self.level = dict(LEVEL=2 if q.dtype == torch.float32 else 1)
        self.sizes = (self.length, self.chunks, self.heads)
        self.common = dict(R=self.rank, P=self.width, S=chunk_size, BR=block_rank, BP=block_width, LAG=lag)
        self.common |= dict(DOCUMENTS=ids is not None, BT=self.rows)
        self.common |= self.precision
        self.reading = self.common | self.level | dict(LOCAL=exact)
        self.block_rank = block_rank
        self.warps = 4 if block_rank <= 64 and block_width <= 64 else 8

    def scan(self, x: Tensor, ends: Tensor, ids: Tensor | None, *, reverse: bool) -> None:
        block = 256
        grid = (self.batch * self.heads, triton.cdiv(self.numbers, block))
        documents = ids is not None
        scan_chunks[grid](
            x, ends, ids, *self.sizes, self.numbers, S=self.size, BE=block, REVERSE=reverse, DOCUMENTS=documents
        )


@torch.library.custom_op("echo_lm::ska", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    initial: Tensor,
    last_key: Tensor,
    ids: Tensor | None,
    exact: bool,
    power: int,
    ridge: float,
    chunk_size: int,
    value_lag: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y and the final sums; for the backward pass the entering states, their inverse factors, W, which chunks are cold,
    and (with `save`) every x_j."""
    shape = _Shape(q, v, ids, exact, chunk_size, value_lag)
    y, final, states, inverse_factor, w, cold, xs = _outputs(shape, v, initial, exact, power, save)
    final.copy_(initial)
    with torch.cuda.device_of(q):
        chunk_sums[(shape.programs,)](k, v, last_key, ids, states, *shape.sizes, **shape.common, num_warps=4)
        shape.scan(states, final, ids, reverse=False)
        padded = shape.padded_rank
        scratch = states.new_empty(shape.programs, padded, padded)
        factoring = dict(R=shape.rank, E=shape.numbers, BR=shape.block_rank, num_warps=1)
        factor[(shape.programs,)](
            states,
            scratch,
            inverse_factor,
            ridge,
            A=padded,
            W_ROWS=shape.rank,
            BA=shape.block_rank,
            GRAM=True,
            **factoring,
        )
        if exact:
            scratch = states.new_empty(shape.programs, chunk_size, chunk_size)
            local_gram[(shape.programs,)](
                k,
                ids,
                inverse_factor,
                scratch,
                w,
                cold,
                ridge,
                *shape.sizes,
                R=shape.rank,
                S=chunk_size,
                BR=shape.block_rank,
                DOCUMENTS=ids is not None,
                **shape.precision,
                num_warps=4,
            )
            factor[(shape.programs,)](
                states, scratch, w, ridge, A=chunk_size, W_ROWS=chunk_size, BA=chunk_size, GRAM=False, **factoring
            )
        for refine in (False, True) if exact else (True,):
            read_forward[(shape.programs, chunk_size // shape.rows)](
                q,
                k,
                v,
                last_key,
                ids,
                scale,
                states,
                inverse_factor,
                w,
                cold,
                y,
                xs,
                ridge,
                *shape.sizes,
                **shape.reading,
                POWER=power,
                REFINE=refine,
                SAVE=save,
                num_warps=shape.warps,
            )
    return y, final, states, inverse_factor, w, cold, xs


def _outputs(shape: _Shape, v: Tensor, initial: Tensor, exact: bool, power: int, save: bool) -> tuple[Tensor, ...]:
    return (
        torch.empty_like(v),
        torch.empty_like(initial),
        initial.new_empty(shape.batch, shape.chunks, shape.heads, 2 * shape.rank + shape.width, shape.rank),
        initial.new_empty(shape.programs, shape.rank, shape.rank),
        initial.new_empty(shape.programs if exact else 0, shape.size, shape.rank),
        initial.new_empty(shape.programs if exact else 0, dtype=torch.int32),
        initial.new_empty(power + 1 if save else 0, *v.shape[:3], shape.rank),
    )


@_forward.register_fake
def _(q, k, v, scale, initial, last_key, ids, exact, power, ridge, chunk_size, value_lag, save):
    return _outputs(_Shape(q, v, ids, exact, chunk_size, value_lag), v, initial, exact, power, save)


@torch.library.custom_op("echo_lm::ska_backward", mutates_args=())
def _backward(
    dy: Tensor,
    dfinal: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    last_key: Tensor,
    ids: Tensor | None,
    states: Tensor,
    inverse_factor: Tensor,
    w: Tensor,
    cold: Tensor,
    xs: Tensor,
    exact: bool,
    power: int,
    ridge: float,
    chunk_size: int,
    value_lag: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, scale, initial and last_key."""
    shape = _Shape(q, v, ids, exact, chunk_size, value_lag)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    a = torch.empty_like(xs[0])
    dk_local, dk_prev = (torch.empty_like(a) if exact else a.new_empty(0) for _ in range(2))
    dscale = states.new_empty(shape.programs)
    dstates = torch.empty_like(states)
    dinitial = dfinal.clone()
    dlast = torch.empty_like(last_key)
    with torch.cuda.device_of(q):
        read_backward[(shape.programs,)](
            k,
            v,
            dy,
            xs[power],
            last_key,
            ids,
            states,
            a,
            dk_local,
            dk_prev,
            dv,
            dstates,
            *shape.sizes,
            **shape.reading,
            num_warps=shape.warps,
        )
        for j in range(power, -1, -1):
            for refine in (False, True) if exact else (True,):
                step_backward[(shape.programs,)](
                    k,
                    last_key,
                    ids,
                    scale,
                    states,
                    inverse_factor,
                    w,
                    cold,
                    xs[j],
                    xs[max(j - 1, 0)],
                    a,
                    dq,
                    dk_local,
                    dk_prev,
                    dscale,
                    dstates,
                    ridge,
                    *shape.sizes,
                    **shape.reading,
                    REFINE=refine,
                    FIRST=j == power,
                    FINAL=j == 0,
                    num_warps=shape.warps,
                )
        shape.scan(dstates, dinitial, ids, reverse=True)
        write_backward[(shape.programs, chunk_size // shape.rows)](
            k,
            v,
            last_key,
            ids,
            dstates,
            dk_local,
            dk_prev,
            dk,
            dv,
            dlast,
            *shape.sizes,
            **shape.reading,
            num_warps=shape.warps,
        )
    dscale = dscale.view(shape.batch * shape.chunks, shape.heads).sum(0)
    return dq, dk, dv, dscale, dinitial, dlast


@_backward.register_fake
def _(dy, dfinal, q, k, v, scale, last_key, *_):
    return tuple(torch.empty_like(x) for x in (q, k, v, scale, dfinal, last_key))


def _save(ctx, inputs, output):
    q, k, v, scale, _, last_key, ids, *options = inputs
    ctx.save_for_backward(q, k, v, scale, last_key, ids, *output[2:])
    ctx.options = options[:-1]
    # The saved outputs are large and get no gradient.
    ctx.set_materialize_grads(False)
    ctx.like = output[0].new_empty(()), output[1].new_empty(())
    ctx.shapes = output[0].shape, output[1].shape


def _differentiate(ctx, dy, dfinal, *_):
    dy, dfinal = (
        like.new_zeros(shape) if d is None else d.contiguous()
        for d, like, shape in zip((dy, dfinal), ctx.like, ctx.shapes, strict=True)
    )
    dq, dk, dv, dscale, dinitial, dlast = torch.ops.echo_lm.ska_backward(dy, dfinal, *ctx.saved_tensors, *ctx.options)
    return dq, dk, dv, dscale, dinitial, dlast, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_save)
