"""Inverses of Gram matrices that rounding may have made indefinite, by a Cholesky factorisation with a diagonal shift where
needed.

G = ridge I + sum z z^T has no eigenvalue below the ridge, so no diagonal element of its inverse is above 1 / ridge. In fp32
the sums of a hundred thousand and more alike keys are off by more than a ridge of 0.001; the factorisation fails then, or
succeeds and gives an inverse of any size. Directions so far below the largest are noise: a multiple of the identity is
added that is small against the trace, to the matrices that need it and no others.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Shifts as shares of the trace, tried in turn until one makes the matrix definite. fp32 rounds at 2^-24.
SHIFTS = (2.0**-20, 2.0**-17, 2.0**-14)
SLACK = 2.0  # factor by which an inverse may exceed its bound


class Inverse(NamedTuple):
    """The inverse of a symmetric positive definite matrix, with its Cholesky factor.

    Attributes:
        matrix: `[..., N, N]`, what was inverted: as given, or shifted.
        factor: its lower Cholesky factor.
        inverse: NaN where no shift helps, or the matrix is not finite.
    """

    matrix: Tensor
    factor: Tensor
    inverse: Tensor


def invert(matrix: Tensor, ridge: float) -> Inverse:
    """Invert G `[..., N, N]`, the ridge included. Waits for the device, to know whether anything is wrong."""
    shape, given = matrix.shape, matrix.reshape(-1, *matrix.shape[-2:])
    factor, inverse, wrong = _try(given, ridge)
    shifted = given
    if wrong.any():
        shifted = given.clone()
        for share in SHIFTS:
            rows = wrong.nonzero().squeeze(1)
            shift = share * given[rows].diagonal(dim1=1, dim2=2).sum(1)
            shifted[rows] = given[rows] + torch.diag_embed(shift[:, None].expand(-1, shape[-1]))
            factor[rows], inverse[rows], wrong[rows] = _try(shifted[rows], ridge + shift)
            if not wrong.any():
                break
    return Inverse(shifted.view(shape), factor.view(shape), inverse.view(shape))


def _try(matrix: Tensor, least: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Factor and inverse of `[n, N, N]`, NaN where there is none, and a mask of the matrices that need a shift. `least`: the
    lower bound of the eigenvalues."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    failed = ((info != 0) | ~factor.diagonal(dim1=1, dim2=2).isfinite().all(1))[:, None, None]
    # Inverting a factor that is not finite raises an error.
    inverse = torch.cholesky_inverse(torch.where(failed, torch.eye(matrix.shape[-1]).to(matrix), factor))
    wrong = failed[:, 0, 0] | (inverse.diagonal(dim1=1, dim2=2).amax(1) > SLACK / least)
    return (
        factor.where(~failed, torch.nan),
        inverse.where(~failed, torch.nan),
        wrong & matrix.isfinite().flatten(1).all(1),
    )
