"""Run recall sweeps on GPUs: jobs from a file, several processes on each GPU, until all are done or the time is up.

    python -m echo_lm.orchestration.jobs.sweep_queue jobs.txt --seconds 560 --workers 2 --out results

A line of the file is one job, the arguments of `python -m echo_lm.evals.sweeps.run`:

    write-cost --arms in-task-hard-0.1
    mqar50m --arms echo --part 0/8 --together 1

Runs in the folder `sweeps` (or `--results`) are not repeated. Each job writes a folder of its own; at the end `NAME.json` in
`--out` holds old and new runs, to replace the old file. A job that is cut off loses its current group of runs, so none begins
with less than `--least` seconds left.
On a bare GPU machine: `docker/offline/sweep_on_gpu.sh`.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ...evals.sweeps.config import load_sweep
from ...evals.sweeps.run import RESULTS, check, read_runs, result_files, save, sweep_parser
from ...evals.sweeps.runs import runs_of
from ...models.common.errors import UserError
from ...pipeline.visible_gpus import visible_gpus

SECONDS_TO_SAVE = 10


@dataclass
class Job:
    """A line of the job file: the sweep's name, the arguments, and the folder that its process writes."""

    sweep: str
    arguments: list[str]
    folder: Path
    gpu: int | None = None
    process: subprocess.Popen | None = None

    def start(self, gpu: int | None, seconds: float, results: Path = RESULTS) -> None:
        """Start the job's process on `gpu`, or on the CPU if None; runs in `results` are not repeated."""
        self.folder.mkdir(parents=True)
        for path in result_files(results, self.sweep):
            shutil.copy(path, self.folder)
        command = [sys.executable, "-m", "echo_lm.evals.sweeps.run", *self.arguments]
        command += ["--out", str(self.folder), "--seconds", f"{seconds:.0f}"]
        command += ["--device", "cpu" if gpu is None else "cuda"]
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES="" if gpu is None else visible_gpus([gpu]))
        self.gpu = gpu
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def print_output(self) -> None:
        """Print the output of the job's process without progress lines; after a failure its last lines."""
        lines = (self.folder / "log").read_text().splitlines()
        shown = [line for line in lines if not line.startswith("  ")]
        if self.process.returncode:
            shown = lines[-15:]
        print(f"{' '.join(self.arguments)}: exit code {self.process.returncode}", *shown, sep="\n  ", flush=True)


def main() -> None:
    """Command line."""
    try:
        sys.exit(run_queue(queue_parser().parse_args()))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def queue_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then what still runs has been stopped")
    parser.add_argument("--least", type=float, default=60, help="seconds that a job begins with, or not at all")
    parser.add_argument("--workers", type=int, default=2, help="processes on each GPU; on a CPU there is one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw results of earlier runs")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder, or one to be made")
    return parser


def run_queue(options: argparse.Namespace) -> int:
    """Run the jobs and join their results; returns the exit code.

    Raises:
        UserError: an argument, the file or a job in it is wrong; nothing has begun then.
    """
    if not options.seconds > 0 or options.workers < 1:
        raise UserError(f"--seconds {options.seconds:g} --workers {options.workers}: above 0, and at least 1")
    if options.out.is_dir() and any(options.out.iterdir()):
        raise UserError(f"--out {options.out} is not empty: name another folder")
    jobs = read_jobs(options.jobs, options.out / "jobs")
    failed = run_jobs(jobs, options)
    for name in dict.fromkeys(job.sweep for job in jobs):
        folders = [options.results, *(job.folder for job in jobs if job.sweep == name)]
        runs = read_runs([path for folder in folders for path in result_files(folder, name)])
        save(options.out / f"{name}.json", name, runs)
        print(f"{name}: {len(runs)} runs in {options.out / name}.json")
    return 1 if failed else 0


def read_jobs(path: Path, folder: Path) -> list[Job]:
    """The jobs of a file, each with a folder of its own in `folder`.

    Raises:
        UserError: no such file, no job in it, or one that `evals.sweeps.run` would refuse.
    """
    jobs = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if arguments := shlex.split(line):
                sweep = load_sweep(Path(arguments[0]))
                check(sweep, sweep_parser().parse_args(arguments))
                runs_of(sweep)  # refuses arms whose model is invalid
                jobs.append(Job(sweep.name, arguments, folder / str(number)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # an open quote, or no UTF-8
        raise UserError(f"{path}: {error}") from error
    if not jobs:
        raise UserError(f"{path} holds no job: a line is a sweep and arguments of evals.sweeps.run")
    return jobs


def run_jobs(jobs: list[Job], options: argparse.Namespace) -> int:
    """Run jobs in order, each on a free slot; returns the number of jobs that failed, were stopped or never began."""
    end = time.monotonic() + options.seconds - SECONDS_TO_SAVE
    free_slots = list(range(torch.cuda.device_count())) * options.workers or [None]
    waiting, running, failed = list(jobs), [], 0
    try:
        while running or (waiting and end - time.monotonic() > options.least):
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                free_slots.append(job.gpu)
                failed += job.process.returncode != 0
                job.print_output()
            while waiting and free_slots and end - time.monotonic() > options.least:
                job = waiting.pop(0)
                job.start(free_slots.pop(0), end - time.monotonic(), options.results)
                running.append(job)
            if time.monotonic() > end:
                print(f"time is up: {len(running)} jobs are stopped", flush=True)
                break
            time.sleep(0.5)
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()
            job.print_output()
    if waiting:
        print(f"{len(waiting)} jobs never began", flush=True)
    return failed + len(running) + len(waiting)


if __name__ == "__main__":
    main()
