"""Records of cells adapted to the study's current settings of loss, held-out sizes and context length of the state."""

import math
from collections.abc import Sequence

import numpy as np

from ....models.common.errors import UserError
from ..plan import Plan
from ..results import CellResult
from ..statistics.cells import Cells, average_seeds
from ..statistics.optimum import Costs


def as_planned(plan: Plan, results: Sequence[CellResult]) -> list[CellResult]:
    """The results in the plan's order, with the values that may change after a cell has run taken from the plan.

    A record states what it was measured for; the study may since have another `evaluation.loss`, `fit.hold_out` or
    `fit.state_context`. So the words of a report and its numbers speak of the same things.

    Raises:
        UserError: cells were measured by different suites, or without the metric that the study now calls its loss.
    """
    by_name = {result.cell.name: result for result in results}
    found = []
    for cell in plan.cells:
        if (result := by_name.get(cell.name)) is not None:
            now = {"held_out": cell.held_out, "state_bytes": cell.state_bytes, "epochs": cell.epochs}
            update = {"cell": result.cell.model_copy(update=now), "loss": _loss(plan, result)}
            found.append(result.model_copy(update=update))
    stated = [result for result in found if result.suites]
    if other := next((result for result in stated if result.suites != stated[0].suites), None):
        raise UserError(
            f"study {plan.study.name}: cell {stated[0].cell.name} was measured by {_named(stated[0])}, cell {other.cell.name} by "
            f"{_named(other)}: their numbers are of different samples; remove cell.json of the ones and run the study again"
        )
    return found


def _loss(plan: Plan, result: CellResult) -> float:
    metric = plan.study.evaluation.loss
    if not result.metrics:
        return result.loss
    if metric not in result.metrics:
        raise UserError(
            f"cell {result.cell.name} has no {metric} (evaluation.loss): it was measured with "
            f"{', '.join(sorted(result.metrics)[:4])} ..."
        )
    return result.metrics[metric]


def _named(result: CellResult) -> str:
    return ", ".join(f"{name} ({sha256[:8]})" for name, sha256 in result.suites.items())


def is_usable(result: CellResult) -> bool:
    """Whether the loss is a positive finite number: a law can pass near it."""
    return math.isfinite(result.loss) and result.loss > 0


def cells_of(results: Sequence[CellResult]) -> Cells:
    """Columns n (parameters without embeddings), d (training tokens), u (unique ones among them); seeds averaged."""
    n = [float(r.cell.parameters) for r in results]
    d = [float(r.cell.tokens) for r in results]
    u = [r.cell.tokens / max(1.0, r.cell.epochs or 1.0) for r in results]
    return average_seeds({"n": n, "d": d, "u": u}, [r.loss for r in results])


def costs_of(results: Sequence[CellResult]) -> Costs:
    """FLOPs of a training token at each size of the cells."""
    return Costs.of([r.cell.parameters for r in results], [r.cell.flops / r.cell.tokens for r in results])


def sizes_of(results: Sequence[CellResult]) -> np.ndarray:
    """The different numbers of parameters, ascending."""
    return np.unique([float(r.cell.parameters) for r in results])
