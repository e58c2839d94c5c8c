"""The fused SKA operator: all kernels in order, registered so that autograd, autocast, torch.compile and checkpointing treat
them as a whole."""

import functools

import torch
import triton
from torch import Tensor
from torch.torch_version import TorchVersion

from ...available import INTERPRETER
from ...documents import document_ids
from ...launch import Launcher, cdiv, next_power_of_2
from ...operator import register
from ..state import SKAState
from .chunk_backward import chunk_backward
from .factor import factor, invert
from .local import local_gram
from .read import read_forward
from .read_backward import read_backward, step_backward
from .sums import scan_chunks, walk_segments
from .write_backward import write_backward


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
    state: SKAState | None,
    return_state: bool,
) -> tuple[Tensor, SKAState | None]:
    """SKA by Triton kernels, with the arguments and results of `ska_naive`; q, k and v may be in half precision, sums and solves
    are fp32.

    `state` None is an empty one; the final state is None unless requested, as making its views takes time on the host.
    """
    rank, width = q.shape[-1], v.shape[-1]
    ids = None if starts is None else document_ids(starts).to(torch.int32)
    initial = last_key = None
    if state is not None:
        initial = torch.cat(tuple(part.float() for part in state[:3]), 2)
        last_key = state.last_key.float().contiguous()
    tile = min(64 if max(rank, width) <= 64 else 32, max(16, next_power_of_2(q.shape[1])))
    y, final, *_ = torch.ops.echo_lm.ska(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        scale.float(),
        initial,
        last_key,
        ids,
        mode == "exact",
        power,
        ridge,
        chunk_size if mode == "chunk" else tile,
        value_lag,
        torch.is_grad_enabled(),
    )
    if not return_state:
        return y, None
    gram, transition, value_map = final.split((rank, rank, width), 2)
    return y, SKAState(gram, transition, value_map, k[:, -1].float())


SEGMENT = 8  # chunks that one program of `walk_segments` adds up
# Programs that look for cold chunks, of which two fit on each multiprocessor at once. A prime, since the first chunks of documents,
# which are cold, lie at equal distances, and each program takes every 263rd chunk.
COLD_PROGRAMS = 263
# Triton 3.6 compiles products of a tile in three parts by a tile in one part wrongly for Hopper (docs/design/kernels.md); 3.7.1
# does not.
ONE_PART_PRODUCTS = INTERPRETER or TorchVersion(triton.__version__) >= "3.7.1"


class _Kernels:
    """The compiled launches for one kind of call: all that does not depend on batch, length and heads is fixed here."""

    def __init__(
        self, dtype: torch.dtype, rank: int, width: int, size: int, exact: bool, power: int, lag: bool, documents: bool
    ):
        # Blocks of one size up to 64: where ranks and values filled blocks of different sizes, Triton 3.6 made code for
        # Hopper that read shared memory that is not there (docs/design/kernels.md).
        block_width = max(16, next_power_of_2(rank), next_power_of_2(width))
        block_rank = min(block_width, 64)
        self.exact, self.power, self.size = exact, power, size
        self.padded = 16 * cdiv(rank, 16)
        self.numbers = (2 * rank + width) * rank  # of a state
        rows = min(size, 64 if max(block_rank, block_width) <= 64 else 32)
        self.tiles = size // rows
        # bf16 is its own leading part. Where products with one part are wrong, the two others are there and zero.
        parts = 1 if dtype == torch.bfloat16 else 3
        safe_parts = parts if ONE_PART_PRODUCTS else 3
        common = dict(
            R=rank, P=width, S=size, BR=block_rank, BP=block_width, DOCUMENTS=documents, INTERPRET=INTERPRETER
        )
        # For half-precision inputs plain products with errors of 2^-16 suffice.
        level = dict(LEVEL=2 if dtype == torch.float32 else 1)
        # Eight warps on 32 rows give wrong products (Triton 3.6, Hopper).
        warps = dict(num_warps=4)

        walking = common | dict(BT=rows, SEGMENT=SEGMENT, LAG=lag, INPUT_PARTS=parts)
        self.add_segments = Launcher(walk_segments, STORE=False, num_warps=4, **walking)
        self.enter_chunks = Launcher(walk_segments, STORE=True, num_warps=4, **walking)
        scanning = dict(BE=256, AHEAD=16, DOCUMENTS=documents, num_warps=4)
        self.scan_segments = Launcher(scan_chunks, S=size * SEGMENT, REVERSE=False, **scanning)
        self.scan_back = Launcher(scan_chunks, S=size, REVERSE=True, **scanning)
        factoring = dict(R=rank, BR=block_rank, num_warps=1)
        self.invert = Launcher(invert, A=self.padded, E=self.numbers, BA=block_rank, **factoring)
        self.write_backward = Launcher(
            write_backward, BT=rows, LAG=lag, LOCAL=exact, INPUT_PARTS=parts, **common, **level, **warps
        )
        common |= dict(INPUT_PARTS=safe_parts if exact else parts)
        reading = common | level | warps
        # bf16 rounds results by 2e-3. Without refined solves they are off by at most 6e-4, but for gradients of keys: those need
        # it in the last solve of the backward pass (then 6e-4 instead of 2e-2), and in no other (docs/design/kernels.md).
        always = exact and dtype != torch.bfloat16
        self.cold_reads = COLD_PROGRAMS if always else 0
        self.cold_steps = [COLD_PROGRAMS if always or j == 0 else 0 for j in range(power + 1)]
        forward = reading | dict(BT=rows, POWER=power, LAG=lag, LOCAL=exact, QUERY_PARTS=safe_parts)
        self.read = {save: Launcher(read_forward, COLD=self.cold_reads, SAVE=save, **forward) for save in (False, True)}
        if exact:
            self.local_gram = Launcher(
                local_gram, num_warps=4, **{name: common[name] for name in local_gram.arg_names if name in common}
            )
            self.factor = Launcher(factor, A=size, BA=size, **factoring)
            self.read_backward = Launcher(read_backward, LAG=lag, **reading)
            self.step_backward = [
                Launcher(step_backward, LAG=lag, COLD=cold, FIRST=j == power, FINAL=j == 0, **reading)
                for j, cold in enumerate(self.cold_steps)
            ]
        else:
            self.chunk_backward = Launcher(chunk_backward, BT=rows, POWER=power, **reading)


@functools.cache
def _kernels(device: int | None, *kind) -> _Kernels:
    """The cached launches for a kind of call on a device; compiled code is loaded on the device that is current at the first
    launch."""
    return _Kernels(*kind)


def _kernels_for(q: Tensor, v: Tensor, ids: Tensor | None, exact: bool, power: int, size: int, lag: bool) -> _Kernels:
    return _kernels(q.device.index, q.dtype, q.shape[-1], v.shape[-1], size, exact, power, lag, ids is not None)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    initial: Tensor | None,
    last_key: Tensor | None,
    ids: Tensor | None,
    exact: bool,
    power: int,
    ridge: float,
    chunk_size: int,
    value_lag: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y and the final sums; for the backward pass the key before the first, the entering states, their G^-1, W, which
    chunks are cold, and (with `save`) every x_j."""
    kernels = _kernels_for(q, v, ids, exact, power, chunk_size, value_lag)
    y, final, previous, states, inverse, w, cold, xs = _outputs(q, v, exact, power, chunk_size, save)
    batch, chunks, heads = states.shape[:3]
    sizes = q.shape[1], chunks, heads
    segments = cdiv(chunks, SEGMENT)
    n, numbers = batch * chunks * heads, kernels.numbers
    final.zero_() if initial is None else final.copy_(initial)
    previous.zero_() if last_key is None else previous.copy_(last_key)
    with torch.cuda.device_of(q):
        sums = states.new_empty(batch * segments * heads, numbers)
        walk = k, v, previous, ids, sums, states, *sizes
        kernels.add_segments((len(sums),), *walk)
        scan = (batch * heads, cdiv(numbers, 256))
        kernels.scan_segments(scan, sums, final, ids, q.shape[1], segments, heads, numbers)
        kernels.enter_chunks((len(sums),), *walk)
        scratch = states.new_empty(n, max(kernels.padded, chunk_size if exact else 0) ** 2)
        kernels.invert((n,), states, scratch, inverse, cold, ridge)
        if exact:
            kernels.local_gram((n,), k, ids, inverse, scratch, w, cold, ridge, *sizes)
            kernels.factor((n,), scratch, w)
        read = q, k, v, previous, ids, scale, states, inverse, w, cold, y, xs
        kernels.read[save]((kernels.cold_reads + n, kernels.tiles), *read, ridge, n, *sizes)
    return y, final, previous, states, inverse, w, cold, xs


def _outputs(q: Tensor, v: Tensor, exact: bool, power: int, size: int, save: bool) -> tuple[Tensor, ...]:
    batch, length, heads, rank = q.shape
    chunks = cdiv(length, size)
    n = batch * chunks * heads
    state = heads, 2 * rank + v.shape[-1], rank

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    return (
        torch.empty_like(v),
        new(batch, *state),
        new(batch, heads, rank),
        new(batch, chunks, *state),
        new(n, rank, rank),
        new(n if exact else 0, size, rank),
        new(n, dtype=torch.int32),
        new(power + 1 if save else 0, *q.shape),
    )


def _fake_forward(q, k, v, scale, initial, last_key, ids, exact, power, ridge, chunk_size, value_lag, save):
    return _outputs(q, v, exact, power, chunk_size, save)


def _backward(
    dy: Tensor,
    dfinal: Tensor | None,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    ids: Tensor | None,
    previous: Tensor,
    states: Tensor,
    inverse: Tensor,
    w: Tensor,
    cold: Tensor,
    xs: Tensor,
    exact: bool,
    power: int,
    ridge: float,
    chunk_size: int,
    value_lag: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, scale (of each chunk), initial and last_key."""
    kernels = _kernels_for(k, v, ids, exact, power, chunk_size, value_lag)
    batch, chunks, heads = states.shape[:3]
    sizes = k.shape[1], chunks, heads
    n = batch * chunks * heads
    dq, dk, dv = (torch.empty_like(x) for x in (k, k, v))
    dscale = states.new_empty(n)
    dstates = torch.empty_like(states)
    dinitial = states.new_zeros(batch, *states.shape[2:]) if dfinal is None else dfinal.clone()
    dlast = torch.empty_like(previous)
    dk_local = dk_prev = None
    with torch.cuda.device_of(k):
        if exact:
            a, dk_local, dk_prev = (torch.empty_like(xs[0]) for _ in range(3))
            kernels.read_backward(
                (n,), k, v, dy, xs[power], previous, ids, states, a, dk_local, dk_prev, dv, dstates, *sizes
            )
            for j in range(power, -1, -1):
                solved = states, inverse, w, cold, xs[j], xs[max(j - 1, 0)]
                gradients = a, dq, dk_local, dk_prev, dscale, dstates
                step = k, previous, ids, scale, *solved, *gradients
                kernels.step_backward[j]((kernels.cold_steps[j] + n,), *step, ridge, n, *sizes)
        else:
            kernels.chunk_backward((n,), dy, xs, ids, scale, states, inverse, cold, dq, dscale, dstates, ridge, *sizes)
        scan = (batch * heads, cdiv(kernels.numbers, 256))
        kernels.scan_back(scan, dstates, dinitial, ids, *sizes, kernels.numbers)
        kernels.write_backward(
            (n, kernels.tiles), k, v, previous, ids, dstates, dk_local, dk_prev, dk, dv, dlast, *sizes
        )
    return dq, dk, dv, dscale.view(batch * chunks, heads), dinitial, dlast


def _fake_backward(dy, dfinal, k, v, scale, ids, previous, states, *_):
    batch, chunks, *state = states.shape
    dscale = states.new_empty(batch * chunks, state[0])
    return (
        *(torch.empty_like(x) for x in (k, k, v)),
        dscale,
        states.new_empty(batch, *state),
        torch.empty_like(previous),
    )


def _save(ctx, inputs, output):
    _, k, v, scale, _, _, ids, *options = inputs
    ctx.save_for_backward(k, v, scale, ids, *output[2:])
    ctx.options = options[:-1]
    # The saved outputs are large and get no gradient.
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, dfinal, *_):
    saved = ctx.saved_tensors  # once: a checkpoint refuses a second access
    dy = torch.zeros_like(saved[1]) if dy is None else dy.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    gradients = torch.ops.echo_lm.ska_backward(dy, dfinal, *saved, *ctx.options)
    dq, dk, dv, dscale, dinitial, dlast = gradients
    wanted = ctx.needs_input_grad
    dscale = dscale.sum(0) if wanted[3] else None
    return dq, dk, dv, dscale, dinitial if wanted[4] else None, dlast if wanted[5] else None, *[None] * 7


register("ska_backward", _backward, _fake_backward)
register("ska", _forward, _fake_forward, _save, _differentiate)
