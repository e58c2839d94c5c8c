"""Fill GPUs with tables of recall: jobs from a file, a few processes on each GPU, until they are done or the time is.

    python benchmarks/recall_queue.py jobs.txt --seconds 560 --workers 2 --out results

A line of the file is one job, the arguments of `recall_tables.py`:

    benchmarks/tables/write-cost.yaml --arms in-task-hard-0.1
    benchmarks/tables/mqar50m.yaml --arms echo --part 0/8 --together 1

Runs that `benchmarks/results/tables` holds are not repeated. Each job writes a folder of its own; at the end `NAME.json` in `--out`
holds what was there and what is new, to be put in the place of the old one. A job that is cut off loses the group of runs it is at.
On a bare GPU machine: `recall_on_card.sh`.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from provenance import ROOT
from recall_tables import RESULTS, read_runs, result_files, save

from echo_lm.evals.recall_table import load_table
from echo_lm.models.errors import UserError

SECONDS_TO_SAVE = 10


@dataclass
class Job:
    """A line of the file: the table's name, the arguments, and where its process writes."""

    table: str
    arguments: list[str]
    folder: Path
    gpu: int | None = None
    process: subprocess.Popen | None = None

    def start(self, gpu: int | None, seconds: float) -> None:
        """Begin; on no GPU where there is none."""
        self.folder.mkdir(parents=True)
        for path in result_files(RESULTS, self.table):
            shutil.copy(path, self.folder)
        command = [sys.executable, str(ROOT / "benchmarks" / "recall_tables.py"), *self.arguments]
        command += [
            "--out",
            str(self.folder),
            "--seconds",
            f"{seconds:.0f}",
            "--device",
            "cpu" if gpu is None else "cuda",
        ]
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES="" if gpu is None else str(gpu))
        self.gpu = gpu
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def say(self) -> None:
        """What its process printed, but for progress."""
        lines = (self.folder / "log").read_text().splitlines()
        told = [line for line in lines if not line.startswith("  ")]
        if self.process.returncode:
            told = lines[-15:]
        print(f"{' '.join(self.arguments)}: exit code {self.process.returncode}", *told, sep="\n  ", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then what still runs is stopped")
    parser.add_argument("--workers", type=int, default=2, help="processes on each GPU")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder, or one to be made")
    options = parser.parse_args()
    try:
        lines = [shlex.split(line) for line in options.jobs.read_text(encoding="utf-8").splitlines() if line.strip()]
        jobs = [
            Job(load_table(Path(arguments[0])).name, arguments, options.out / "jobs" / str(i))
            for i, arguments in enumerate(lines)
        ]
    except (OSError, UserError) as error:
        parser.error(str(error))
    if options.out.is_dir() and any(options.out.iterdir()):
        parser.error(f"--out {options.out} is not empty: name another folder")
    failed = work(jobs, options.workers, options.seconds)
    for name in dict.fromkeys(job.table for job in jobs):
        folders = [RESULTS, *(job.folder for job in jobs if job.table == name)]
        runs = read_runs([path for folder in folders for path in result_files(folder, name)])
        save(options.out / f"{name}.json", name, runs)
        print(f"{name}: {len(runs)} runs in {options.out / name}.json")
    sys.exit(1 if failed else 0)


def work(jobs: list[Job], workers: int, seconds: float) -> int:
    """Start jobs in order wherever a place is free; the number of those that failed."""
    started = time.monotonic()
    left = lambda: seconds - (time.monotonic() - started)  # noqa: E731
    places = list(range(torch.cuda.device_count())) * workers or [None]
    waiting, running, failed = list(jobs), [], 0
    while waiting or running:
        for job in [job for job in running if job.process.poll() is not None]:
            running.remove(job)
            places.append(job.gpu)
            failed += job.process.returncode != 0
            job.say()
        while waiting and places and left() > SECONDS_TO_SAVE:
            job = waiting.pop(0)
            job.start(places.pop(0), left() - SECONDS_TO_SAVE)
            running.append(job)
        if left() <= 0:
            print(f"time is up: {len(running)} jobs are stopped, {len(waiting)} never began", flush=True)
            for job in running:
                job.process.send_signal(signal.SIGTERM)
                job.process.wait()
                job.say()
            return failed + len(running) + len(waiting)
        time.sleep(0.5)
    return failed


if __name__ == "__main__":
    main()
