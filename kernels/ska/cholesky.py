"""Cholesky factors of sums that rounding may have made indefinite.

G = ridge I + sum z z^T has no eigenvalue below the ridge. In fp32 the sums of some ten thousand alike keys are off by more
than that, the factorisation fails, and one NaN ends a run. Directions so far below the largest are noise by then: a
multiple of the identity is added that is small against the trace, to the matrices that need it and no others.
"""

import torch
from torch import Tensor

# Of the trace; the next is tried where the one before does not do. fp32 rounds at 2^-24.
SHIFTS = (2.0**-20, 2.0**-17, 2.0**-14)


def cholesky(matrix: Tensor, smallest_eigenvalue: float) -> Tensor:
    """The lower factor of `[..., N, N]`, of which the lower triangle is read.

    Args:
        smallest_eigenvalue: what it cannot be less than in exact arithmetic; no pivot is then. NaN stays NaN.
    """
    shape, matrix = matrix.shape, matrix.reshape(-1, *matrix.shape[-2:])
    factor, info = torch.linalg.cholesky_ex(matrix)
    for shift in SHIFTS:
        # Half: pivots as small as they may be are right but for their own rounding.
        pivots = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
        low = ((info > 0) | (pivots < 0.5 * smallest_eigenvalue)).nonzero().squeeze(1)
        if not len(low):
            break
        raised = matrix[low]
        diagonal = raised.diagonal(dim1=-2, dim2=-1)
        diagonal += shift * diagonal.sum(-1, keepdim=True)
        factor[low], info[low] = torch.linalg.cholesky_ex(raised)
    return factor.view(shape)
