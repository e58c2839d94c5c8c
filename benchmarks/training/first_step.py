"""Time, processes and files of `echo-lm run` from the prompt to the first training step, for two revisions of this repository.

    python -m benchmarks.training.first_step 834d047 HEAD --repeat 3

Each revision prepares its dataset first; then its runs take turns with those of the other, each in a new run folder. A folder with
a checkout may stand for a revision. Counted are the processes of the command when the first step is recorded, its own among them,
and the files in the run folder at that moment.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.training.same_losses import Refused, prepare

POLL_SECONDS = 0.05


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="+", help="revisions, or folders of checkouts")
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers of every start")
    options = parser.parse_args()
    console = Console(highlight=False)
    starts = []
    try:
        with tempfile.TemporaryDirectory(prefix="first_step_") as place:
            commands = {name: prepare(name, Path(place) / str(i)) for i, name in enumerate(options.revisions)}
            folders = {name: Path(place) / str(i) for i, name in enumerate(options.revisions)}
            for name, command in commands.items():
                (folders[name] / "work").mkdir()
                run(command, folders[name], ["prepare", options.recipe]).wait()
            for number in range(options.repeat):
                for name, command in commands.items():
                    starts.append(
                        {"revision": name, "number": number} | first_step(command, folders[name], options.recipe)
                    )
    except Refused as error:
        print(f"first_step: {error}", file=sys.stderr)
        sys.exit(2)
    if options.out:
        options.out.write_text(json.dumps(starts, indent=1) + "\n")
    table = Table(
        "revision",
        "seconds (median)",
        "each",
        "processes",
        "files in the run folder",
        "MB of the command's own process",
    )
    for name in commands:
        own = [start for start in starts if start["revision"] == name]
        seconds = [start["seconds"] for start in own]
        each = ", ".join(f"{value:.1f}" for value in seconds)
        memory = median(start["supervisor_mb"] for start in own)
        table.add_row(
            name, f"{median(seconds):.1f}", each, str(own[-1]["processes"]), str(own[-1]["files"]), f"{memory:.0f}"
        )
    console.print(table)
    console.print({name: dict(Counter(start["names"])) for start in starts for name in [start["revision"]]})


def run(command: str, place: Path, arguments: list[str]) -> subprocess.Popen:
    """Start a command of a revision in its own folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_LM_")}
    environment |= {"PYTHONPATH": str(place / "modules"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        cwd=place / "work",
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def first_step(command: str, place: Path, recipe: str) -> dict:
    """Start a run and stop it at its first recorded step.

    Raises:
        Refused: the run ended before.
    """
    runs = place / "work" / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    started = time.monotonic()
    process = run(command, place, ["run", recipe])
    try:
        while not (logs := [path for path in runs.glob("*/events.jsonl") if '"kind": "step"' in path.read_text()]):
            if process.poll() is not None:
                raise Refused(f"{recipe} ended with code {process.returncode} before its first step")
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - started
        own = psutil.Process(process.pid)
        children = own.children(recursive=True)
        names = [own.name(), *(child.name() for child in children)]
        files = sum(path.is_file() for path in logs[0].parent.rglob("*"))
        memory = own.memory_info().rss / 1e6
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait()
    return {
        "seconds": round(seconds, 2),
        "processes": len(names),
        "names": names,
        "files": files,
        "supervisor_mb": round(memory),
    }


if __name__ == "__main__":
    main()
