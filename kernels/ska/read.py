"""The read of SKA for all chunks at once, y = C G^-1 (s M G^-1)^K q, with a hand-written backward pass.

No gradient passes through a factorisation (which would be slow, and unstable where the ridge conditions the result):
d(G^-1 x) needs only solves with the same matrix. Everything works on `n = chunks * heads` matrices, rows are tokens.

In the exact form each token has its own operator: the sums of the chunks before (`gram`, `transition`, `value_map`)
plus those of the tokens up to itself in its chunk. With R R^T = I + Z G^-1 Z^T, whose leading blocks factor every
prefix of the chunk, and W = R^-1 Z G^-1,

    G_t^-1 = G^-1 - sum_{s <= t} w_s w_s^T,        so        solve(X) = X G^-1 - ((X W^T) * causal) W.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .cholesky import invert

# A chunk whose keys are large against what came before (the first of a document always is) computes G_t^-1 as a small
# difference of numbers up to 1/ridge; its fp32 solves get one step of refinement. Gain is max_s z_s^T G^-1 z_s.
REFINE_ABOVE_GAIN = 8.0


@dataclass(frozen=True)
class Mask:
    """Masks of the rows of a chunk that each row may read from.

    Attributes:
        causal: `[S, S]` lower triangle, or `[chunks, 1, S, S]` cut at document borders; float.
        old: `[chunks, 1, S, 1]` bool, True for rows of the document that the chunk entered with; None: all are.
        chunks, heads: how the `n` matrices are laid out.
    """

    causal: Tensor
    old: Tensor | None
    chunks: int
    heads: int

    def apply(self, x: Tensor) -> Tensor:
        """Set to zero, in place, the entries of rows that a row may not use: `[n, S, S]`."""
        x.view(self.chunks, self.heads, *x.shape[1:]).mul_(self.causal)
        return x

    def keep_old(self, x: Tensor) -> Tensor:
        """Zero the rows that do not see the entering state: `[n, S, *]`."""
        if self.old is None:
            return x
        return (x.view(self.chunks, self.heads, *x.shape[1:]) * self.old).view_as(x)

    def where_old(self, x: Tensor, other: Tensor) -> Tensor:
        """Rows of `x` that see the entering state, rows of `other` elsewhere."""
        if self.old is None:
            return x
        shape = (self.chunks, self.heads, *x.shape[1:])
        return torch.where(self.old, x.view(shape), other.view(shape)).view_as(x)

    def select(self, matrices: Tensor) -> "Mask":
        """The mask of some of the `n` matrices, as one head each."""
        chunk = matrices // self.heads
        causal = self.causal if self.causal.dim() == 2 else self.causal[chunk]
        return Mask(causal, None if self.old is None else self.old[chunk], len(matrices), 1)


class Solver:
    """Solver of G_t y_t = x_t for every row x_t, for `n` matrices `gram` (ridge included) and keys `z` `[n, S, R]` (None: none)."""

    def __init__(self, gram: Tensor, z: Tensor | None, ridge: float, mask: Mask):
        self.z, self.ridge, self.mask = z, ridge, mask
        # The residual of the refinement is taken with the matrix that was inverted, shift included.
        self.gram, _, self.inverse = invert(gram, ridge)
        self.refine: Tensor | None = None
        if z is None:
            return
        base = self._base(z)
        inner = mask.apply(torch.bmm(base, z.mT))
        gain = inner.diagonal(dim1=1, dim2=2)
        if gram.dtype == torch.float32:
            self.refine = (gain.amax(1) > REFINE_ABOVE_GAIN).nonzero().squeeze(1)
        gain.add_(1.0)
        # cholesky_ex reads the lower triangle only, so the mask needs no mirroring.
        factor = torch.linalg.cholesky_ex(inner)[0]
        self.w = torch.linalg.solve_triangular(factor, base, upper=False)

    def _base(self, x: Tensor) -> Tensor:
        return self.mask.where_old(torch.bmm(x, self.inverse), x / self.ridge)

    def __call__(self, x: Tensor) -> Tensor:
        if self.z is None:
            # Without local terms one step of refinement always: an operator of few keys loses its gradients to 1/ridge.
            solved = torch.bmm(x, self.inverse)
            residual = torch.baddbmm(x, solved, self.gram, alpha=-1)
            return torch.baddbmm(solved, residual, self.inverse)
        solved = self._solve(x)
        if self.refine is not None and len(self.refine):
            if len(self.refine) == len(x):
                solved += self._solve(x - self._product(solved))
            else:
                part = self._part
                some = solved[self.refine]
                solved.index_add_(0, self.refine, part._solve(x[self.refine] - part._product(some)))
        return solved

    def _solve(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self._base(x), self.mask.apply(torch.bmm(x, self.w.mT)), self.w, alpha=-1)

    def _product(self, x: Tensor) -> Tensor:
        """Rows x_t -> rows G_t x_t, with local terms."""
        assert self.z is not None
        base = self.mask.where_old(torch.bmm(x, self.gram), x * self.ridge)
        return torch.baddbmm(base, self.mask.apply(torch.bmm(x, self.z.mT)), self.z)

    @property
    def _part(self) -> "Solver":
        """The solver of the matrices to refine, made once."""
        if not hasattr(self, "_refined"):
            refine, z = self.refine, self.z
            assert refine is not None
            assert z is not None
            part = object.__new__(Solver)
            part.gram, part.z, part.inverse, part.w = (t[refine] for t in (self.gram, z, self.inverse, self.w))
            part.ridge, part.mask, part.refine = self.ridge, self.mask.select(refine), None
            self._refined = part
        return self._refined


class Read(torch.autograd.Function):
    """Autograd function of `read`, with gradients for every tensor argument."""

    @staticmethod
    def forward(ctx, q, z, z_prev, v, gram, transition, value_map, scale, blend, power, ridge, value_lag, local, mask):
        gram = gram.clone()
        gram.diagonal(dim1=1, dim2=2).add_(ridge)
        solver = Solver(gram, z if local else None, ridge, mask)
        x = solver(q)
        xs = [x]
        for _ in range(power):
            filtered = torch.bmm(mask.keep_old(x), transition.mT)
            if local:
                filtered = torch.baddbmm(filtered, mask.apply(torch.bmm(x, z_prev.mT)), z)
            x = solver(filtered.mul_(scale))
            xs.append(x)
        x = _blended(xs, blend)
        y = torch.bmm(mask.keep_old(x), value_map.mT)
        if local:
            y = torch.baddbmm(y, mask.apply(torch.bmm(x, (z_prev if value_lag else z).mT)), v)
        ctx.save_for_backward(z, z_prev, v, transition, value_map, scale, blend, *xs)
        ctx.solver, ctx.power, ctx.value_lag, ctx.local, ctx.mask = solver, power, value_lag, local, mask
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        with torch.autocast(dy.device.type, enabled=False):
            return Read._backward(ctx, dy)

    @staticmethod
    def _backward(ctx, dy):
        z, z_prev, v, transition, value_map, scale, blend, *xs = ctx.saved_tensors
        solver, mask, local = ctx.solver, ctx.mask, ctx.local
        dy = dy.contiguous()
        dz: Tensor | None = None
        dz_prev: Tensor | None = None
        dv = dscale = dblend = None
        read = _blended(xs, blend)
        dtransition = torch.zeros_like(transition)
        a = torch.bmm(mask.keep_old(dy), value_map)
        dvalue_map = torch.bmm(dy.mT, mask.keep_old(read))
        if local:
            read_key = z_prev if ctx.value_lag else z
            dread = mask.apply(torch.bmm(dy, v.mT))
            a = torch.baddbmm(a, dread, read_key)
            dv = torch.bmm(mask.apply(torch.bmm(read, read_key.mT)).mT, dy)
            dread_key = torch.bmm(dread.mT, read)
            dz = torch.zeros_like(z) if ctx.value_lag else dread_key
            dz_prev = dread_key if ctx.value_lag else torch.zeros_like(z)
        dgram = torch.zeros_like(transition)
        if ctx.needs_input_grad[7]:
            dscale = torch.zeros_like(scale)
        of_read = a
        if blend is not None:
            dblend = torch.stack([(of_read * x).sum(-1) for x in xs], -1)
            a = of_read * blend[..., -1:]
        for j in range(ctx.power, -1, -1):
            a = solver(a)
            a_old = mask.keep_old(a)
            dgram.baddbmm_(a_old.mT, xs[j], alpha=-1)
            a_z = None
            if dz is not None:
                a_z = mask.apply(torch.bmm(a, z.mT))
                # Twice, once for each slot of the symmetric z z^T.
                dz.baddbmm_(mask.apply(torch.bmm(xs[j], z.mT)).mT, a, alpha=-1)
                dz.baddbmm_(a_z.mT, xs[j], alpha=-1)
            if j == 0:
                break
            x = xs[j - 1]
            back = torch.bmm(a_old, transition)
            scaled = a * scale
            dtransition.baddbmm_(mask.keep_old(scaled).mT, x)
            if dz is not None and dz_prev is not None and a_z is not None:
                back = torch.baddbmm(back, a_z, z_prev)
                dz.baddbmm_(mask.apply(torch.bmm(x, z_prev.mT)).mT, scaled)
                dz_prev.baddbmm_(a_z.mT, x * scale)
            if dscale is not None:
                # <a, M x> read from the other side: <M^T a, x>.
                dscale += (back * x).sum((1, 2), keepdim=True)
            a = back.mul_(scale)
            if blend is not None:
                a = torch.addcmul(a, of_read, blend[..., j - 1 : j])
        return a, dz, dz_prev, dv, dgram, dtransition, dvalue_map, dscale, dblend, None, None, None, None, None


def _blended(xs: list[Tensor], blend: Tensor | None) -> Tensor:
    """The vectors that the value map is applied to: the last solution, or the sum of all by their weights `[n, S, powers]`."""
    if blend is None:
        return xs[-1]
    read = sum(x * blend[..., j : j + 1] for j, x in enumerate(xs))
    assert isinstance(read, Tensor)
    return read


def read(
    q: Tensor,
    z: Tensor,
    z_prev: Tensor,
    v: Tensor,
    gram: Tensor,
    transition: Tensor,
    value_map: Tensor,
    scale: Tensor,
    *,
    power: int,
    ridge: float,
    value_lag: bool,
    local: bool,
    mask: Mask,
    blend: Tensor | None = None,
) -> Tensor:
    """Read `n` chunks, each from its entering sums and, where `local`, from its own tokens up to the reader.

    Args:
        q: queries `[n, S, R]`.
        z: keys `[n, S, R]`.
        z_prev: the keys one position before `[n, S, R]`.
        v: values `[n, S, P]`.
        gram: sum of z z^T at the entry, without the ridge `[n, R, R]`.
        transition: sum of z z_prev^T at the entry `[n, R, R]`.
        value_map: sum of v z^T at the entry `[n, P, R]`.
        scale: `[n, 1, 1]`.
        blend: `[n, S, power + 1]`, the share of each power in what is read; None: the highest alone.
        local: False for the chunk-causal and prefix forms, whose z, z_prev and v get no gradient here.

    Returns:
        `[n, S, P]`.
    """
    return Read.apply(q, z, z_prev, v, gram, transition, value_map, scale, blend, power, ridge, value_lag, local, mask)
