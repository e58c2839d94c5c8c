"""Train and ask every run of a table of recall; goes on where it stopped.

    python benchmarks/recall_tables.py benchmarks/tables/transfer.yaml --device cuda --seconds 540

Each finished group of runs is added to `benchmarks/results/tables/NAME.json` (or `--out`); runs that are there already,
unchanged, are not repeated. `benchmarks/recall_report.py` makes tables and figures of it. On a bare GPU machine source
`benchmarks/use_carry.sh` first.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from echo_lm.evals.recall_table import RecallRun, load_table, measure_together, runs_of
from echo_lm.models.errors import UserError
from echo_lm.models.files import write_aside

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tables"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a YAML file of benchmarks/tables")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--together", type=int, default=12, help="runs that train side by side on a GPU")
    parser.add_argument("--arms", nargs="*", help="only these")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further group after so long")
    arguments = parser.parse_args()
    try:
        run_table(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def run_table(arguments: argparse.Namespace) -> None:
    """Every run that is not there yet, group by group."""
    table = load_table(arguments.table)
    if unknown := set(arguments.arms or ()) - set(table.arms):
        raise UserError(f"table {table.name} has no arm {min(unknown)!r}: it has {', '.join(table.arms)}")
    path = arguments.out / f"{table.name}.json"
    done = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    have = {run["id"] for run in done}
    missing = [run for run in runs_of(table) if run.id not in have]
    missing = [run for run in missing if not arguments.arms or run.arm in arguments.arms]
    print(f"{table.name}: {len(missing)} runs to do, {len(have)} there", flush=True)
    together = arguments.together if arguments.device.startswith("cuda") else 1
    started, longest = time.monotonic(), 0.0
    for first in range(0, len(missing), together):
        begun = time.monotonic()
        if begun + longest > started + arguments.seconds:
            print(f"stopped: {len(missing) - first} runs are left, the same command goes on with them", flush=True)
            return
        group = missing[first : first + together]
        results = measure_together(
            table, group, device=arguments.device, on_progress=lambda line: print(f"  {line}", flush=True)
        )
        done += [result | machine(arguments.device) for result in results]
        save(path, table.name, done)
        longest = max(longest, time.monotonic() - begun)
        for run, result in zip(group, results, strict=True):
            print(summary_line(run, result), flush=True)


def save(path: Path, name: str, runs: list[dict[str, Any]]) -> None:
    """All runs so far, one on a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(run, allow_nan=False) for run in runs)
    with write_aside(path) as aside:
        aside.write_text(f'{{"table": "{name}", "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def machine(device: str) -> dict[str, str]:
    """What a run was measured on, when, and by which code."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "hardware": torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU {platform.machine()}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or "unknown",
    }


def summary_line(run: RecallRun, result: dict[str, Any]) -> str:
    """One line for people: the mean accuracy of each task."""
    tasks: dict[str, list[float]] = {}
    for row in result["rows"]:
        tasks.setdefault(row["task"], []).append(row["correct"] / row["queries"])
    means = " ".join(f"{task} {100 * sum(found) / len(found):5.1f}" for task, found in tasks.items())
    rate = run.training.learning_rate
    return f"{run.arm:16} lr {rate:g} seed {run.seed} loss {result['final_loss']}: {means}"


if __name__ == "__main__":
    main()
