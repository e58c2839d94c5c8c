"""Train a recipe with two revisions of this repository and compare the losses of every step, bit for bit.

    python -m benchmarks.training.same_losses 94d8ee0 HEAD
    python -m benchmarks.training.same_losses 94d8ee0 HEAD --recipe smoke run.workers=1 train.steps=10

Both revisions run on this machine, one after the other, with the interpreter that runs this script: each from its own files, in
an empty folder, with a dataset that it prepares itself. A folder with a checkout may stand for a revision, which then includes
what is not committed there. Overrides go to both revisions. The exit code is 1 if any number differs, 2 if there is nothing to
compare.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from echo_lm.models.common.cached_files import subfolders
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
FIELDS = ("loss", "loss_text", "loss_recall", "grad_norm")
Steps = dict[int, dict[str, Any]]


class Refused(Exception):
    """A wrong argument or a failed training, explained in one line."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a revision, or the folder of a checkout")
    parser.add_argument("new", help="likewise")
    parser.add_argument("--recipe", default="smoke", help="a recipe's name, or a YAML file")
    parser.add_argument("overrides", nargs="*", help="dotted overrides, such as train.steps=10")
    arguments = parser.parse_intermixed_args()
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="same_losses_") as place:
            revisions = {"old": arguments.old, "new": arguments.new}
            commands = {name: prepare(revision, Path(place) / name) for name, revision in revisions.items()}
            runs = []
            for name, revision in revisions.items():
                console.print(f"training {arguments.recipe} with {revision} ...", markup=False)
                runs.append(train(commands[name], arguments.recipe, arguments.overrides, Path(place) / name, console))
        differences = report(*runs, console)
    except Refused as error:
        print(f"same_losses: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if differences else 0)


def prepare(revision: str, place: Path) -> str:
    """Put the files of a revision below `place`; return the Python code that runs its command line.

    Raises:
        Refused: there is no such revision, or it is none of Echo-LM.
    """
    return command_line(checkout(revision, place / "source"), place / "modules")


def train(command: str, recipe: str, overrides: list[str], place: Path, console: Console) -> Steps:
    """Train with what `prepare` put below `place`, in an empty folder, and return the steps.

    Raises:
        Refused: the training failed.
    """
    recipe = str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe
    work = place / "work"
    work.mkdir()
    # Neither this environment's folders of runs and datasets, nor more threads in one training than in the other.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECHO_LM_")}
    environment |= {"PYTHONPATH": str(place / "modules"), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", command, "train", recipe, *overrides],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        error_lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise Refused(f"the training failed: {error_lines[-1]}")
    steps = read_steps(work)
    console.print(f"  {len(steps)} steps, {time.monotonic() - started:.0f} s", markup=False)
    return steps


def checkout(revision: str, folder: Path) -> Path:
    """Write the files of a revision to `folder` and return it; if it names the folder of a checkout, return that.

    Raises:
        Refused: git knows no such revision.
    """
    if Path(revision).is_dir():
        return Path(revision).resolve()
    # An archive, since a worktree would stay registered in the repository if this process were killed.
    process = subprocess.run(["git", "-C", str(ROOT), "archive", "--format=tar", revision], capture_output=True)
    if process.returncode:
        raise Refused(f"{revision!r} is neither a folder nor a revision of {ROOT}")
    with tarfile.open(fileobj=io.BytesIO(process.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def command_line(source: Path, modules: Path) -> str:
    """Make a checkout importable from `modules` and return the Python code that runs its `echo-lm`.

    Packages and entry point are those of the checkout's pyproject.toml, as they move between revisions.

    Raises:
        Refused: the file is missing, or names no packages or no entry point.
    """
    try:
        project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
        entry, folders = project["project"]["scripts"]["echo-lm"], project["tool"]["setuptools"]["package-dir"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise Refused(f"{source} is no checkout of Echo-LM (pyproject.toml: {error})") from error
    # A package of its own, not a namespace: what this revision lacks must not be found in an installed one.
    root, _, _ = entry.partition(".")
    (modules / root).mkdir(parents=True)
    (modules / root / "__init__.py").touch()
    for name, folder in folders.items():
        if name.count(".") == 1:
            (modules / root / name.partition(".")[2]).symlink_to(source / folder)
    module, _, function = entry.partition(":")
    return f"from {module} import {function}; {function}()"


def read_steps(work: Path) -> Steps:
    """Read the steps of the one run below `work/runs`; of a step that was repeated the last record counts.

    Raises:
        Refused: there is no run, or no step in it.
    """
    logs = [RunFolder(folder).events_file for folder in subfolders(work / "runs")]
    trained = {event["step"]: event for log in logs for event in steps(read_events(log))}
    if len(logs) != 1 or not trained:
        raise Refused(f"training left {len(logs)} runs with {len(trained)} steps: one run with steps was expected")
    return trained


def report(old: Steps, new: Steps, console: Console) -> int:
    """Print a table of what was compared and return how many numbers differ, a step of one revision alone included."""
    both = sorted(old.keys() & new.keys())
    unmatched = sorted(old.keys() ^ new.keys())
    table = Table("number", "steps compared", "different", "first difference")
    total = len(unmatched)
    for field in FIELDS:
        measured = [step for step in both if field in old[step] or field in new[step]]
        # Both were read from decimal digits that name one float64 each, so equal numbers have equal bits.
        differing = [step for step in measured if old[step].get(field) != new[step].get(field)]
        first = "-"
        if differing:
            step = differing[0]
            first = f"step {step}: {old[step].get(field)!r}, then {new[step].get(field)!r}"
        table.add_row(field, str(len(measured)), str(len(differing)), first)
        total += len(differing)
    console.print(table)
    if unmatched:
        console.print(f"{len(unmatched)} steps are in one run alone, the first is {unmatched[0]}")
    console.print("the same, bit for bit" if not total else f"DIFFERENT: {total} numbers")
    return total


if __name__ == "__main__":
    main()
