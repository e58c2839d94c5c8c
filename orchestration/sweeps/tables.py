"""Tables of `echo-lm sweep plan` and `status`."""

from pathlib import Path

from rich.table import Table

from ...evals.sweeps.config import RecallSweep, load_sweep
from ...evals.sweeps.plan import missing_runs
from ...evals.sweeps.result_files import Results, SweepFolder
from ...evals.sweeps.runs import RecallRun, evaluated_tokens, runs_of
from ...models import count_parameters
from ..jobs.leases import looks_held


def plan_table(sweep: RecallSweep) -> Table:
    """Every arm with its model, its runs, and the tokens that they train on and are evaluated on.

    Raises:
        UserError: a run that is impossible.
    """
    planned = runs_of(sweep)
    table = Table(title=f"sweep {sweep.name}")
    for column in ("arm", "preset"):
        table.add_column(column)
    for column in ("parameters", "runs", "trained, M tokens", "evaluated, M tokens"):
        table.add_column(column, justify="right")
    for arm in sweep.arms:
        runs = [run for run in planned if run.arm == arm]
        parameters = f"{count_parameters(runs[0].config).non_embedding:,}" if runs else "-"
        table.add_row(arm, sweep.arms[arm].preset, parameters, str(len(runs)), *_tokens(sweep, runs))
    table.add_section()
    table.add_row("all", "", "", str(len(planned)), *_tokens(sweep, planned))
    return table


def plan_summary(sweep: RecallSweep) -> str:
    """The settings that all runs of a sweep have in common, in a few lines."""
    seeds, rates = ", ".join(map(str, sweep.seeds)), ", ".join(f"{rate:g}" for rate in sweep.learning_rates)
    cells = f"{len(sweep.cells)} cells of {', '.join(dict.fromkeys(cell.name for cell in sweep.cells))}"
    spared = ""
    if sweep.each_cell is not None:
        cells += ", a model for each"
        if sweep.each_cell.enough is not None:
            spared = f"; at most, since a cell gets another rate only below {100 * sweep.each_cell.enough:g}%"
    return f"seeds {seeds}; learning rates {rates}; {cells}{spared}"


def status_table(target: str, sweeps: Path) -> Table:
    """The table of the numbers of runs of every arm that are done, running, failed and left. Reads files only.

    Raises:
        UserError: no such sweep, or a damaged result file.
    """
    sweep = load_sweep(Path(target))
    folder, planned = SweepFolder(sweeps, sweep.name), runs_of(sweep)
    found = Results(folder).found
    missing = {run.id for run in missing_runs(sweep, planned, planned, found)}
    failed = {path.stem for path in folder.path.glob("failures/*.json")}
    table = Table(title=f"sweep {sweep.name} in {folder.path}")
    table.add_column("arm")
    for column in ("runs", "done", "not needed", "at work", "failed", "left"):
        table.add_column(column, justify="right")
    for arm in [*sweep.arms, "all"]:
        runs = [run for run in planned if arm in (run.arm, "all")]
        done = sum(run.id in found for run in runs)
        open_runs = [run for run in runs if run.id in missing]
        at_work = [run for run in open_runs if looks_held(folder.lease_file(run.id))]
        failures = sum(run.id in failed for run in open_runs)
        if arm == "all":
            table.add_section()
        counts = (len(runs), done, len(runs) - done - len(open_runs), len(at_work), failures)
        table.add_row(arm, *map(str, counts), str(len(open_runs) - len(at_work) - failures))
    return table


def _tokens(sweep: RecallSweep, runs: list[RecallRun]) -> tuple[str, str]:
    trained = sum(_training_tokens(run) for run in runs) / 1e6
    evaluated = sum(evaluated_tokens(sweep, run) for run in runs) / 1e6
    return f"{trained:,.1f}", f"{evaluated:,.1f}"


def _training_tokens(run: RecallRun) -> int:
    """Tokens that a run trains on at most."""
    training = run.training
    per_step = sum(training.batch_at(length) * length for length in training.lengths) / len(training.lengths)
    whole = int(training.steps * per_step)
    return whole if training.tokens is None else min(whole, training.tokens)
