"""Seconds from SIGTERM to a complete checkpoint, to the end of the command, and until none of its processes is left.

    python -m benchmarks.faults.stop_times benchmarks/results/stop_times_cpu_DATE.json --repeat 3

For `train`, `run` (both: recipe `smoke`, two workers) and `study run` (study-pocket), each stopped once by a signal to the command
alone and once to every process of the job, as Slurm without `B:` and systemd send it. A batch system's usual grace is 30 s.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import psutil

from echo_lm.evals.layout import complete_checkpoints
from echo_lm.models.common.provenance import commit
from echo_lm.models.common.run_layout import EVENTS
from echo_lm.pipeline.run.events import read_events

CLI = [sys.executable, "-c", "from echo_lm.orchestration.cli.main import main; main()"]
LONG = ["train.steps=100000", "run.checkpoint_every=100000", "run.workers=2", "evaluation.suites=[]"]
COMMANDS = {
    "train": (["train", "smoke", *LONG], "runs/smoke"),
    "run": (["run", "smoke", *LONG, "--tracking-uri", "sqlite:///mlflow.db"], "runs/smoke"),
    "study run": (["study", "run", "long.yaml"], "studies/study-pocket/runs/*"),
}


def newest(place: Path, pattern: str) -> Path | None:
    """The run with the most steps so far among those of the command."""
    runs = {run: _steps(run) for run in place.glob(pattern) if (run / EVENTS).is_file()}
    return max(runs, key=runs.get) if runs and max(runs.values()) >= 5 else None


def _steps(run: Path) -> int:
    return max((event["step"] for event in read_events(run / EVENTS) if event["kind"] == "step"), default=0)


def stop(command: str, everyone: bool, data: Path) -> dict:
    """Start the command, stop it in training, and measure."""
    arguments, pattern = COMMANDS[command]
    place = Path(tempfile.mkdtemp(prefix="stop-times-"))
    write_study(place / "long.yaml")
    process = subprocess.Popen(
        [*CLI, *arguments, "--data", str(data)], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while (run := newest(place, pattern)) is None:
        if process.poll() is not None:
            raise SystemExit(process.stdout.read())
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    before = {path for path, _ in complete_checkpoints(run)}
    began = time.monotonic()
    for each in reversed(family) if everyone else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    saved = ended = None
    while ended is None or any(map(psutil.Process.is_running, family)):
        if saved is None and {path for path, _ in complete_checkpoints(run)} - before:
            saved = time.monotonic() - began
        if ended is None and process.poll() is not None:
            ended = time.monotonic() - began
        if time.monotonic() - began > 180:
            break
        time.sleep(0.05)
    gone = time.monotonic() - began
    output = process.communicate()[0]
    row = {"command": command, "to": "all processes" if everyone else "the command", "exit_code": process.returncode}
    row |= {"checkpoint": saved, "end": ended, "no_process_left": gone, "processes": len(family) + 1}
    if process.returncode:
        row["output"] = output[-2000:]
    return row


def write_study(path: Path) -> None:
    """Write the file of a study like study-pocket with a single cell that trains for long."""
    import yaml

    from echo_lm.orchestration.studies.config import load_study

    values = load_study("study-pocket").model_dump(mode="json")
    values |= {"families": ["echo"], "sizes": {"900k": values["sizes"]["900k"]}, "seeds": [0]}
    values["budgets"]["tokens"] = [65_536_000]
    values["limits"] = {"max_epochs": 1000}
    path.write_text(yaml.safe_dump(values))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the prepared datasets of smoke and study-pocket"
    )
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for _, command, everyone in itertools.product(range(options.repeat), COMMANDS, (False, True)):
        rows.append(stop(command, everyone, options.data.resolve()))
        print(
            {key: round(value, 1) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True
        )
        content = {"date": str(date.today()), "commit": commit(), "cpu_cores": os.cpu_count(), "rows": rows}
        options.out.write_text(json.dumps(content, indent=1))
    for command, everyone in itertools.product(COMMANDS, ("the command", "all processes")):
        chosen = [row for row in rows if (row["command"], row["to"]) == (command, everyone)]
        medians = (
            statistics.median(row[key] or 999 for row in chosen) for key in ("checkpoint", "end", "no_process_left")
        )
        print(f"{command:10} {everyone:14}", *(f"{value:6.1f}" for value in medians))
    return 0


if __name__ == "__main__":
    sys.exit(main())
