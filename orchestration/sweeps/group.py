"""Groups of runs of a recall sweep that train side by side, as jobs."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...evals.sweeps.config import RecallSweep
from ...evals.sweeps.result_files import SweepFolder, provenance, write_run
from ...evals.sweeps.runs import RecallRun
from ...models.common.files import read_json, write_json
from ..jobs.job import Job, Resources
from ..progress.bars import console


@dataclass(frozen=True)
class GroupJob(Job):
    """The training and evaluation of runs that share a GPU, each on a stream of its own; a file for each when all are done."""

    sweep: RecallSweep
    runs: tuple[RecallRun, ...]
    folder: SweepFolder
    device: str
    resources: Resources = Job.resources

    @property
    def name(self) -> str:
        arms = ", ".join(dict.fromkeys(run.arm for run in self.runs))
        return f"sweep {self.sweep.name}: {len(self.runs)} {'run' if len(self.runs) == 1 else 'runs'} of {arms}"

    @property
    def leases(self) -> tuple[Path, ...]:
        return tuple(self.folder.lease_file(run.id) for run in self.runs)

    @property
    def log(self) -> Path:
        return self.folder.log_file(self.runs[0].id)

    def is_done(self) -> bool:
        return all(self.folder.run_file(run.id).is_file() for run in self.runs)

    def run(self) -> None:
        """Train and evaluate the runs that another process has not done meanwhile, and write their files."""
        from ...evals.sweeps.measure import measure_together

        started = time.monotonic()
        results = measure_together(
            self.sweep,
            [run for run in self.runs if not self.folder.run_file(run.id).is_file()],
            device=self.device,
            on_progress=lambda line: print(line, flush=True),
        )
        measured = provenance(self.device) | {"group_seconds": round(time.monotonic() - started, 1)}
        for result in results:
            write_run(self.folder, result | measured)

    def record_success(self, node: str, seconds: float) -> None:
        """Print a line for each run, and remove the failure file of an earlier command."""
        self.folder.failure_file(self.runs[0].id).unlink(missing_ok=True)
        for run in self.runs:
            console.print(_summary_line(run, read_json(self.folder.run_file(run.id))), markup=False)

    def record_failure(self, errors: list[str]) -> None:
        write_json(self.folder.failure_file(self.runs[0].id), {"errors": errors, "time": time.time()})


def _summary_line(run: RecallRun, result: dict[str, Any]) -> str:
    """The mean accuracy of each task, in percent."""
    tasks: dict[str, list[float]] = {}
    for row in result["rows"]:
        tasks.setdefault(row["task"], []).append(row["correct"] / row["queries"])
    means = " ".join(f"{task} {100 * sum(shares) / len(shares):5.1f}" for task, shares in tasks.items())
    tokens = f"{result['tokens'] / 1e6:.1f}M tokens"
    return (
        f"{run.arm:16} lr {run.training.learning_rate:g} seed {run.seed} {tokens} loss {result['final_loss']}: {means}"
    )
