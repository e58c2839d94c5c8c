"""Train and evaluate every run of a recall sweep; a later start goes on where it stopped.

    python -m echo_lm.evals.sweeps.run transfer --device cuda --seconds 540

Each finished group of runs is added to `NAME.json` in the folder `sweeps` (or `--out`); runs that are there already,
unchanged, are not repeated. Several processes share a sweep with `--part`, a GPU each:

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
from .config import RecallSweep, load_sweep
from .measure import measure_together
from .runs import RecallRun, differ_in_rate_alone, is_settled, runs_of

RESULTS = Path("sweeps")  # raw results, in the folder one works in, as `runs` and `studies` are


def main() -> None:
    """Command line."""
    arguments = sweep_parser().parse_args()
    try:
        run_sweep(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def sweep_parser() -> argparse.ArgumentParser:
    """What the command line takes; `orchestration/jobs/sweep_queue.py` reads its jobs by it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a sweep of the package (transfer) or a YAML file")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the raw results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--together", type=int, help="runs that train side by side on a GPU; default: the sweep's")
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


def check(sweep: RecallSweep, arguments: argparse.Namespace) -> None:
    """Look at what can be wrong before anything runs.

    Raises:
        UserError: an argument does not fit the sweep.
    """
    if unknown := set(arguments.arms or ()) - set(sweep.arms):
        raise UserError(f"sweep {sweep.name} has no arm {min(unknown)!r}: it has {', '.join(sweep.arms)}")
    if arguments.together is not None and arguments.together < 1:
        raise UserError(f"--together is {arguments.together}: at least 1 run")
    if arguments.part is not None:
        parse_part(arguments.part)


def run_sweep(arguments: argparse.Namespace) -> None:
    """Every run of the part that is not there yet, group by group.

    Raises:
        UserError: an argument, the sweep or a result file is wrong.
    """
    sweep = load_sweep(arguments.sweep)
    check(sweep, arguments)
    together = sweep.together if arguments.together is None else arguments.together
    path, planned = arguments.out / f"{sweep.name}.json", runs_of(sweep)
    runs = [run for run in planned if not arguments.arms or run.arm in arguments.arms]
    if arguments.part is not None:
        part, parts = parse_part(arguments.part)
        path, runs = arguments.out / f"{sweep.name}.{part}-of-{parts}.json", runs[part::parts]
    done = read_runs([path]) if path.is_file() else []
    found = {result["id"]: result for result in read_runs(result_files(arguments.out, sweep.name))}
    missing = [run for run in runs if run.id not in found and not is_settled(sweep, run, planned, found)]
    tokens = sum(cell.tokens for run in missing for cell in run.cells)
    print(
        f"{sweep.name}: {len(missing)} runs to do, {len(runs) - len(missing)} there or not needed; "
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
        group = next_group(sweep, missing, together)
        results = measure_together(
            sweep, group, device=arguments.device, on_progress=lambda line: print(f"  {line}", flush=True)
        )
        longest = max(longest, time.monotonic() - begun)
        done += [result | machine(arguments.device) for result in results]
        save(path, sweep.name, done)
        for run, result in zip(group, results, strict=True):
            print(summary_line(run, result), flush=True)
        found |= {result["id"]: result for result in results}
        missing = [run for run in missing if run.id not in found and not is_settled(sweep, run, planned, found)]


def next_group(sweep: RecallSweep, missing: Sequence[RecallRun], together: int) -> list[RecallRun]:
    """The first runs that train side by side: not two of a cell that one learning rate may answer enough of."""
    group: list[RecallRun] = []
    spares = sweep.each_cell is not None and sweep.each_cell.enough is not None
    for run in missing:
        if len(group) < together and not (spares and any(differ_in_rate_alone(run, other) for other in group)):
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
    """The files that hold runs of a sweep: `NAME.json`, and one for each part that ran."""
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
