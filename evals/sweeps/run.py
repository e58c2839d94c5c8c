"""Train and ask every run of a table of recall; goes on where it stopped.

    python -m echo_lm.evals.sweeps.run transfer --device cuda --seconds 540

Each finished group of runs is added to `NAME.json` in the folder `sweeps` (or `--out`); runs that are there already,
unchanged, are not repeated. Several processes share a table with `--part`, a GPU each:

    CUDA_VISIBLE_DEVICES=0 python -m echo_lm.evals.sweeps.run transfer --part 0/2 &
    CUDA_VISIBLE_DEVICES=1 python -m echo_lm.evals.sweeps.run transfer --part 1/2

Each then writes `NAME.K-of-N.json`, and every start reads what all of these files hold. `report.py` makes
tables and figures of them. On a bare GPU machine source `docker/offline/use_bundle.sh` first.
"""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...models.common.errors import UserError
from ...models.common.files import read_json, write_aside
from ...models.common.provenance import commit
from .config import RecallTable, load_table
from .measure import measure_together
from .runs import RecallRun, is_settled, of_one_cell, runs_of

RESULTS = Path("sweeps")  # raw results, in the folder one works in, as `runs` and `studies` are


def main() -> None:
    """Command line."""
    arguments = tables_parser().parse_args()
    try:
        run_table(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def tables_parser() -> argparse.ArgumentParser:
    """What the command line takes; `orchestration/jobs/sweep_queue.py` reads its jobs by it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a sweep of the package (transfer) or a YAML file")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--together", type=int, help="runs that train side by side on a GPU; default: the table's")
    parser.add_argument("--arms", nargs="*", help="only these")
    parser.add_argument(
        "--part", metavar="K/N", help="every N-th run (of the chosen arms) from the K-th on, K from 0 to N-1"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="begin no group that would, as the longest so far, end later",
    )
    return parser


def check(table: RecallTable, arguments: argparse.Namespace) -> None:
    """Look at what can be wrong before anything runs.

    Raises:
        UserError: an argument does not fit the table.
    """
    if unknown := set(arguments.arms or ()) - set(table.arms):
        raise UserError(f"table {table.name} has no arm {min(unknown)!r}: it has {', '.join(table.arms)}")
    if arguments.together is not None and arguments.together < 1:
        raise UserError(f"--together is {arguments.together}: at least 1 run")
    if arguments.part is not None:
        parse_part(arguments.part)


def run_table(arguments: argparse.Namespace) -> None:
    """Every run of the part that is not there yet, group by group.

    Raises:
        UserError: an argument, the table or a result file is wrong.
    """
    table = load_table(arguments.table)
    check(table, arguments)
    together = table.together if arguments.together is None else arguments.together
    path, planned = arguments.out / f"{table.name}.json", runs_of(table)
    runs = [run for run in planned if not arguments.arms or run.arm in arguments.arms]
    if arguments.part is not None:
        part, parts = parse_part(arguments.part)
        path, runs = arguments.out / f"{table.name}.{part}-of-{parts}.json", runs[part::parts]
    done = read_runs([path]) if path.is_file() else []
    found = {result["id"]: result for result in read_runs(result_files(arguments.out, table.name))}
    missing = [run for run in runs if run.id not in found and not is_settled(table, run, planned, found)]
    tokens = sum(cell.tokens for run in missing for cell in run.cells)
    print(
        f"{table.name}: {len(missing)} runs to do, {len(runs) - len(missing)} there or not needed; "
        f"{tokens / 1e6:,.0f}M tokens to ask",
        flush=True,
    )
    together = together if arguments.device.startswith("cuda") else 1
    started, longest = time.monotonic(), 0.0
    while missing:
        begun = time.monotonic()
        if longest and begun + longest > started + arguments.seconds:
            print(f"stopped: {len(missing)} runs are left, the same command goes on with them", flush=True)
            return
        group = next_group(table, missing, together)
        results = measure_together(
            table, group, device=arguments.device, on_progress=lambda line: print(f"  {line}", flush=True)
        )
        longest = max(longest, time.monotonic() - begun)
        done += [result | machine(arguments.device) for result in results]
        save(path, table.name, done)
        for run, result in zip(group, results, strict=True):
            print(summary_line(run, result), flush=True)
        found |= {result["id"]: result for result in results}
        missing = [run for run in missing if run.id not in found and not is_settled(table, run, planned, found)]


def next_group(table: RecallTable, missing: Sequence[RecallRun], together: int) -> list[RecallRun]:
    """The first runs that train side by side: not two of a cell that one learning rate may answer enough of."""
    group: list[RecallRun] = []
    spares = table.each_cell is not None and table.each_cell.enough is not None
    for run in missing:
        if len(group) < together and not (spares and any(of_one_cell(run, other) for other in group)):
            group.append(run)
    return group


def parse_part(text: str) -> tuple[int, int]:
    """ "K/N" as two numbers.

    Raises:
        UserError: it is not that, or K is not one of 0 to N-1.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise UserError(f"--part is {text!r}: it is K/N with K from 0 to N-1, such as 0/2 and 1/2")
    return int(found[1]), int(found[2])


def result_files(folder: Path, name: str) -> list[Path]:
    """The files that hold runs of a table: `NAME.json`, and one for each part that ran."""
    pattern = re.compile(re.escape(name) + r"(\.\d+-of-\d+)?\.json")
    return sorted(path for path in Path(folder).glob("*.json") if pattern.fullmatch(path.name))


def read_runs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The runs of result files, each once.

    Raises:
        UserError: a file that holds none.
    """
    runs: dict[str, dict[str, Any]] = {}
    for path in paths:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
            raise UserError(f"{path} holds no runs: move it away, or name another folder")
        for run in content["runs"]:
            runs.setdefault(run["id"], run)
    return list(runs.values())


def save(path: Path, name: str, runs: list[dict[str, Any]]) -> None:
    """All runs so far, one on a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(run, allow_nan=False) for run in runs)
    with write_aside(path) as aside:
        aside.write_text(f'{{"table": "{name}", "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def machine(device: str) -> dict[str, str]:
    """What a run was measured on, when, and by which code."""
    return {
        "hardware": torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU {platform.machine()}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def summary_line(run: RecallRun, result: dict[str, Any]) -> str:
    """One line for people: the mean accuracy of each task."""
    tasks: dict[str, list[float]] = {}
    for row in result["rows"]:
        tasks.setdefault(row["task"], []).append(row["correct"] / row["queries"])
    means = " ".join(f"{task} {100 * sum(found) / len(found):5.1f}" for task, found in tasks.items())
    rate = run.training.learning_rate
    took = f"{result['tokens'] / 1e6:.1f}M tokens"
    return f"{run.arm:16} lr {rate:g} seed {run.seed} {took} loss {result['final_loss']}: {means}"


if __name__ == "__main__":
    main()
