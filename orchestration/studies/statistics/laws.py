"""Laws of the loss in closed form, and their derivatives.

A law is a formula `loss(parameters, columns)` with named parameters and named columns of the cells: `n` (parameters of a model
without embeddings), `d` (training tokens), `u` (unique tokens among them), `family` (a number). Derivatives are automatic
(torch.func); laws that are sums of power terms have them in closed form too, which is 20 times faster (a test compares them).
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.func import jacfwd, vmap

Columns = Mapping[str, np.ndarray]
LARGEST_EXPONENT = 2.5  # larger ones, and terms that vanish at every size, cannot be identified
MAX_STARTS = 300


@dataclass(frozen=True)
class Parameter:
    """A parameter of a law: its bounds and the values that fits start from, in natural units.

    Attributes:
        log: whether its logarithm is fitted, as is right for positive scales.
        starts: within the bounds.
    """

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    log: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of the fitted number."""
        return (float(np.log(self.low)), float(np.log(self.high))) if self.log else (self.low, self.high)


@dataclass(frozen=True)
class Law:
    """A law of your own: any formula of torch functions.

    Attributes:
        loss: `(parameters, columns)`, both mappings of tensors by name, to the loss of each cell.
        columns: those that the formula uses; a fit needs three different values of each.
        text: the formula as it is printed.
    """

    name: str
    parameters: tuple[Parameter, ...]
    loss: Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], torch.Tensor] = field(compare=False)
    columns: tuple[str, ...] = ("n", "d")
    text: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def lower(self) -> np.ndarray:
        return np.array([parameter.bounds[0] for parameter in self.parameters])

    @property
    def upper(self) -> np.ndarray:
        return np.array([parameter.bounds[1] for parameter in self.parameters])

    def natural(self, fitted: np.ndarray) -> np.ndarray:
        """Convert fitted numbers to parameters in natural units, `[..., P]` both."""
        logs = np.array([parameter.log for parameter in self.parameters])
        return np.where(logs, np.exp(np.where(logs, fitted, 0.0)), fitted)

    def fitted(self, values: Mapping[str, float]) -> np.ndarray:
        """Convert values in natural units to fitted numbers `[P]`."""
        return np.array([np.log(values[p.name]) if p.log else values[p.name] for p in self.parameters])

    def starts(self, columns: Columns, log_loss: np.ndarray) -> np.ndarray:
        """Starting points of a fit, `[starts, P]`: the grid of the parameters' own starts."""
        grid = np.array(list(itertools.product(*(parameter.starts for parameter in self.parameters))), dtype=float)
        grid = grid[:: max(1, len(grid) // MAX_STARTS)]
        logs = np.array([parameter.log for parameter in self.parameters])
        return np.where(logs, np.log(np.where(logs, grid, 1.0)), grid)

    def log_loss(self, fitted: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """log L `[B, m]` of fitted numbers `[B, P]` at `m` cells, and its derivatives `[B, m, P]`."""
        tensors = {name: torch.as_tensor(np.asarray(columns[name], dtype=float)) for name in self.columns}

        def one(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values = {p.name: numbers[i].exp() if p.log else numbers[i] for i, p in enumerate(self.parameters)}
            result = self.loss(values, tensors).log()
            return result, result

        jacobian, values = vmap(jacfwd(one, has_aux=True))(torch.as_tensor(np.asarray(fitted, dtype=float)))
        return values.numpy(), jacobian.numpy()

    def predict(self, fitted: np.ndarray, columns: Columns) -> np.ndarray:
        """The predicted loss L of `m` cells, `[..., m]` for fitted numbers `[..., P]`."""
        fitted = np.asarray(fitted, dtype=float)
        values, _ = self.log_loss(np.atleast_2d(fitted), columns)
        return np.exp(values).reshape(*fitted.shape[:-1], -1)


@dataclass(frozen=True)
class PowerLaw(Law):
    """A law whose terms are powers: log L is a log-sum-exp of terms that are linear in the fitted numbers.

    Attributes:
        terms: `columns` to `[terms, m, P]`: what each fitted number is multiplied by in the logarithm of each term.
        scales: `{scale: exponent}` of the terms that fall with a column, for the starts.
    """

    terms: Callable[[Columns], np.ndarray] = field(kw_only=True, compare=False)
    scales: Mapping[str, tuple[str, str]] = field(default_factory=dict, compare=False)

    def log_loss(self, fitted: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        design = self.terms(columns)
        logs = np.matmul(design, np.asarray(fitted, dtype=float).T)  # [terms, m, B]
        top = logs.max(axis=0)
        weights = np.exp(logs - top)
        total = weights.sum(axis=0)
        jacobian = np.einsum("tmb,tmp->bmp", weights / total, design)
        return (top + np.log(total)).T, jacobian

    def starts(self, columns: Columns, log_loss: np.ndarray) -> np.ndarray:
        """Chinchilla's grid (Hoffmann et al. 2022, D.3), thinned: every term from a fiftieth of the loss to several times it."""
        exponents = dict.fromkeys(exponent for exponent, _ in self.scales.values())
        grids = {name: (0.2, 0.5, 1.0) for name in exponents}
        shares = {f"share of {group}": (0.03, 2.0) for group in dict.fromkeys(self._groups().values())}
        floors = {"floor": (0.2, 0.9)}
        rows = []
        for values in itertools.product(*grids.values(), *shares.values(), *floors.values()):
            chosen = dict(zip([*grids, *shares, *floors], values, strict=True))
            row = []
            for name in self.names:
                if name in exponents:
                    row.append(chosen[name])
                elif name in self.scales:
                    exponent, column = self.scales[name]
                    middle = np.log(columns[column]).mean()
                    row.append(np.log(chosen[f"share of {column}"]) + log_loss.mean() + chosen[exponent] * middle)
                else:
                    row.append(np.log(chosen["floor"]) + log_loss.min())
            rows.append(row)
        return np.clip(np.array(rows), self.lower, self.upper)

    def _groups(self) -> dict[str, str]:
        return {scale: column for scale, (_, column) in self.scales.items()}


def _exponent(name: str) -> Parameter:
    return Parameter(name, 0.0, LARGEST_EXPONENT, (0.2, 0.5, 1.0))


def _scale(name: str) -> Parameter:
    return Parameter(name, float(np.exp(-10)), float(np.exp(60)), (1.0, 100.0, 1e4), log=True)


def _floor(name: str) -> Parameter:
    return Parameter(name, float(np.exp(-20)), float(np.exp(5)), (0.3, 2.0), log=True)


def _design(names: tuple[str, ...], m: int, terms: list[dict[str, np.ndarray | float]]) -> np.ndarray:
    """`[terms, m, P]` from what each term multiplies, by parameter; a term that is absent at a cell is -inf there (`gone`)."""
    design = np.zeros((len(terms), m, len(names)))
    for t, term in enumerate(terms):
        for name, values in term.items():
            design[t, :, names.index(name)] = values
    return design


def _chinchilla_terms(columns: Columns) -> np.ndarray:
    log_n, log_d = np.log(columns["n"]), np.log(columns["d"])
    terms = [{"A": 1.0, "alpha": -log_n}, {"B": 1.0, "beta": -log_d}, {"E": 1.0}]
    return _design(CHINCHILLA_NAMES, len(log_n), terms)


CHINCHILLA_NAMES = ("A", "B", "E", "alpha", "beta")
CHINCHILLA = PowerLaw(
    name="chinchilla",
    parameters=(_scale("A"), _scale("B"), _floor("E"), _exponent("alpha"), _exponent("beta")),
    loss=lambda p, c: p["E"] + p["A"] / c["n"] ** p["alpha"] + p["B"] / c["d"] ** p["beta"],
    text="L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022)",
    terms=_chinchilla_terms,
    scales={"A": ("alpha", "n"), "B": ("beta", "d")},
)
SIZES = PowerLaw(
    name="sizes",
    parameters=(_scale("A"), _floor("E"), _exponent("alpha")),
    loss=lambda p, c: p["E"] + p["A"] / c["n"] ** p["alpha"],
    columns=("n",),
    text="L = E + A / N^alpha, through cells of one budget of tokens",
    terms=lambda c: _design(("A", "E", "alpha"), len(c["n"]), [{"A": 1.0, "alpha": -np.log(c["n"])}, {"E": 1.0}]),
    scales={"A": ("alpha", "n")},
)
ONE_EXPONENT = PowerLaw(
    name="one-exponent",
    parameters=(_scale("A"), _scale("B"), _floor("E"), _exponent("alpha")),
    loss=lambda p, c: p["E"] + p["A"] / c["n"] ** p["alpha"] + p["B"] / c["d"] ** p["alpha"],
    text="L = E + A / N^alpha + B / D^alpha, one exponent for both",
    terms=lambda c: _design(
        ("A", "B", "E", "alpha"),
        len(c["n"]),
        [{"A": 1.0, "alpha": -np.log(c["n"])}, {"B": 1.0, "alpha": -np.log(c["d"])}, {"E": 1.0}],
    ),
    scales={"A": ("alpha", "n"), "B": ("alpha", "d")},
)
NO_FLOOR = PowerLaw(
    name="no-floor",
    parameters=(_scale("A"), _scale("B"), _exponent("alpha"), _exponent("beta")),
    loss=lambda p, c: p["A"] / c["n"] ** p["alpha"] + p["B"] / c["d"] ** p["beta"],
    text="L = A / N^alpha + B / D^beta, no irreducible loss",
    terms=lambda c: _design(
        ("A", "B", "alpha", "beta"),
        len(c["n"]),
        [{"A": 1.0, "alpha": -np.log(c["n"])}, {"B": 1.0, "beta": -np.log(c["d"])}],
    ),
    scales={"A": ("alpha", "n"), "B": ("beta", "d")},
)
KAPLAN = Law(
    name="kaplan",
    parameters=(
        Parameter("N_c", 1.0, 1e30, (1e8, 1e13), log=True),
        Parameter("D_c", 1.0, 1e30, (1e8, 1e13), log=True),
        Parameter("alpha", 1e-3, LARGEST_EXPONENT, (0.08, 0.3)),
        Parameter("beta", 1e-3, LARGEST_EXPONENT, (0.1, 0.3)),
    ),
    loss=lambda p, c: ((p["N_c"] / c["n"]) ** (p["alpha"] / p["beta"]) + p["D_c"] / c["d"]) ** p["beta"],
    text="L = ((N_c / N)^(alpha / beta) + D_c / D)^beta (Kaplan et al. 2020, equation 1.5)",
)


def _repeated(p: Mapping[str, torch.Tensor], c: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Effective tokens U + U R (1 - exp(-(D/U - 1) / R)) (Muennighoff et al. 2023, equation 5)."""
    repetitions = (c["d"] / c["u"] - 1).clamp(min=0)
    effective = c["u"] * (1 + p["R"] * (1 - torch.exp(-repetitions / p["R"])))
    return p["E"] + p["A"] / c["n"] ** p["alpha"] + p["B"] / effective ** p["beta"]


@dataclass(frozen=True)
class _DataConstrained(Law):
    def log_loss(self, fitted: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """log L and its derivatives, as in `CHINCHILLA` with effective tokens, plus the derivative by log R."""
        fitted = np.asarray(fitted, dtype=float)
        log_n, u, r = np.log(columns["n"]), np.asarray(columns["u"]), np.exp(fitted[:, 5:])
        repetitions = np.maximum(np.asarray(columns["d"]) / u - 1, 0.0)
        decay = np.exp(-repetitions / r)
        effective = u * (1 + r * (1 - decay))
        a, b, e, alpha, beta = (fitted[:, i, None] for i in range(5))
        logs = np.stack([a - alpha * log_n, b - beta * np.log(effective), np.broadcast_to(e, effective.shape)])
        top = logs.max(axis=0)
        share = np.exp(logs - top)
        total = share.sum(axis=0)
        share = share / total
        by_log_r = -beta * share[1] * u * (r * (1 - decay) - repetitions * decay) / effective
        jacobian = np.stack([*share, -log_n * share[0], -np.log(effective) * share[1], by_log_r], axis=2)
        return top + np.log(total), jacobian

    def starts(self, columns: Columns, log_loss: np.ndarray) -> np.ndarray:
        base = CHINCHILLA.starts({"n": columns["n"], "d": np.minimum(columns["d"], columns["u"])}, log_loss)
        return np.concatenate([np.column_stack([base, np.full(len(base), np.log(r))]) for r in (3.0, 15.0)])


DATA_CONSTRAINED = _DataConstrained(
    name="data-constrained",
    parameters=(*CHINCHILLA.parameters, Parameter("R", 0.1, 1e4, (3.0, 15.0), log=True)),
    loss=_repeated,
    columns=("n", "d", "u"),
    text="L = E + A / N^alpha + B / D'^beta, D' = U + U R (1 - exp(-(D / U - 1) / R)), U: unique tokens (Muennighoff et al. 2023, "
    "without their term for excess parameters)",
)


def joint_law(families: int) -> PowerLaw:
    """Chinchilla's law of several families with exponents in common: A, B and E of each, one alpha, one beta.

    Its cells have a column `family`, 0 to `families - 1`.
    """
    names = (*(f"{scale}_{k}" for scale in "ABE" for k in range(families)), "alpha", "beta")

    def terms(c: Columns) -> np.ndarray:
        log_n, log_d = np.log(c["n"]), np.log(c["d"])
        mine = [(np.asarray(c["family"]) == k).astype(float) for k in range(families)]
        a, b, e = ({f"{scale}_{k}": mine[k] for k in range(families)} for scale in "ABE")
        return _design(names, len(log_n), [a | {"alpha": -log_n}, b | {"beta": -log_d}, e])

    def loss(p: Mapping[str, torch.Tensor], c: Mapping[str, torch.Tensor]) -> torch.Tensor:
        def own(scale: str) -> torch.Tensor:
            return sum(p[f"{scale}_{k}"] * (c["family"] == k) for k in range(families))  # pyright: ignore[reportReturnType]  # there is a family

        return own("E") + own("A") / c["n"] ** p["alpha"] + own("B") / c["d"] ** p["beta"]

    scales = {
        f"{scale}_{k}": at for scale, at in (("A", ("alpha", "n")), ("B", ("beta", "d"))) for k in range(families)
    }
    return PowerLaw(
        name="joint",
        parameters=(
            *(_scale(name) for name in names if name[0] in "AB"),
            *(_floor(name) for name in names if name[0] == "E"),
            _exponent("alpha"),
            _exponent("beta"),
        ),
        loss=loss,
        columns=("n", "d", "family"),
        text="L = E_f + A_f / N^alpha + B_f / D^beta, exponents in common",
        terms=terms,
        scales=scales,
    )


LAWS = {law.name: law for law in (CHINCHILLA, ONE_EXPONENT, NO_FLOOR, KAPLAN, DATA_CONSTRAINED, SIZES)}
