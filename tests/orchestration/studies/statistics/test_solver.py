"""The batched solver against scipy."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from echo_lm.orchestration.studies.statistics.solver import huber, minimise


def test_the_batched_solver_agrees_with_scipy():
    random = np.random.default_rng(3)
    x = np.linspace(0, 4, 30)
    target = 2 * np.exp(-0.7 * x) + 0.05 * random.standard_normal((2, 30))
    target[:, 5] += 3  # an outlier, which least squares would follow

    def model(p):
        decay = np.exp(-p[:, 1:] * x)
        return p[:, :1] * decay, np.stack([decay, -p[:, :1] * x * decay], axis=2)

    solutions, losses = minimise(model, target, np.ones((2, 2)), delta=0.1)
    for problem in range(2):
        expected = least_squares(
            lambda p, y=target[problem]: p[0] * np.exp(-p[1] * x) - y,
            [1, 1],
            loss="huber",
            f_scale=0.1,
            xtol=1e-14,
            ftol=1e-14,
        )
        assert solutions[problem] == pytest.approx(expected.x, rel=1e-4)
        assert losses[problem] == pytest.approx(huber(expected.fun, 0.1).sum(), rel=1e-6)
