"""The trunks of a plan: which cells branch from which trunk at which step, and what that saves."""

from collections.abc import Iterable, Sequence

from ..config import StudyConfig
from ..plan import Plan, StudyCell


def with_schedule(study: StudyConfig, cells: Sequence[StudyCell]) -> list[StudyCell]:
    """The cells with the warmup and cooldown of a study with trunks, trained from their first steps on.

    All budgets of a size have the warmup of the smallest one, or they could not share a trunk.
    """
    trunk = study.budgets.trunk
    if trunk is None:
        return list(cells)
    smallest: dict[tuple[str, str], int] = {}
    for cell in cells:
        key = (cell.family, cell.size)
        smallest[key] = min(smallest.get(key, cell.tokens), cell.tokens)
    return [
        cell.model_copy(
            update={
                "warmup_tokens": round(study.train.warmup_fraction * smallest[cell.family, cell.size]),
                "decay_steps": max(1, round(trunk.cooldown * cell.steps)),
            }
        )
        for cell in cells
    ]


def branched(study: StudyConfig, cells: Iterable[StudyCell]) -> tuple[list[StudyCell], list[StudyCell]]:
    """Turn the cells, except those of the learning-rate sweep, into branches of trunks; returns them and the trunks, each as
    long as needed."""
    if study.budgets.trunk is None:
        return list(cells), []
    branches, longest = [], {}
    for cell in cells:
        if cell.kind == "main":
            name = f"{cell.family}-{cell.size}-trunk-s{cell.seed}"
            cell = cell.model_copy(update={"trunk": name, "branch_step": cell.steps - (cell.decay_steps or 0)})
            cell = cell.model_copy(update={"seconds": _seconds(study, cell)})
            if name not in longest or longest[name].branch_step < cell.branch_step:
                longest[name] = cell
        branches.append(cell)
    return branches, [_trunk_of(study, cell) for cell in longest.values()]


def savings(plan: Plan) -> str:
    """A line on the tokens and hours that trunks save, compared with a full run for each cell; empty without trunks."""
    if not plan.trunks:
        return ""
    separate = sum(cell.tokens for cell in plan.cells)
    hours = f", {plan.hours:.2f} h instead of {plan.separate_hours:.2f}" if plan.separate_hours is not None else ""
    return (
        f"trunks: {len(plan.trunks)}, from which {len(plan.of_kind('main'))} cooldowns branch: {plan.tokens:,} tokens instead of "
        f"{separate:,} of separate runs ({plan.tokens / separate:.0%}){hours}"
    )


def _trunk_of(study: StudyConfig, longest: StudyCell) -> StudyCell:
    """The trunk that ends where the longest of its cells branches off."""
    steps = longest.branch_step
    share = steps / longest.steps
    trunk = longest.model_copy(
        update={
            "name": longest.trunk,
            "kind": "trunk",
            "budget": "trunk",
            "steps": steps,
            "tokens": steps * longest.batch_tokens,
            "flops": longest.flops * share,
            "epochs": None if longest.epochs is None else longest.epochs * share,
            "trunk": None,
            "branch_step": 0,
            "decay_steps": 0,
        }
    )
    return trunk.model_copy(update={"seconds": _seconds(study, trunk)}) if steps else trunk


def _seconds(study: StudyConfig, cell: StudyCell) -> float:
    return study.hardware.seconds_of(cell.size, cell.own_flops)
