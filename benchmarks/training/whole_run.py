"""A whole run on a machine with one or two GPUs: trained, killed, resumed, every checkpoint evaluated meanwhile.

    python -m benchmarks.training.whole_run --data data --out DIR  # the recipe linux-50m; a second GPU evaluates
    python -m benchmarks.training.whole_run --recipe smoke --kill-at 15 --device cpu --data data --out DIR  # does the script work?

The dataset is prepared already (`echo-lm prepare linux-50m`) or is made now. DIR gets `run.tar.xz`: the run folder without weights,
which `echo-lm track` replays into MLflow on any machine and `pipeline/run/report.py` makes a report of. Nothing here needs Ray or
MLflow. On a bare GPU machine: `source docker/offline/use_bundle.sh` first.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import psutil

from echo_lm.evals.config import load_suite
from echo_lm.evals.layout import complete_checkpoints, result_files, result_path
from echo_lm.models.common.files import read_json, write_aside
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.report import write_report
from echo_lm.pipeline.visible_gpus import visible_gpus

COMMAND = [sys.executable, "-W", "ignore", "-c", "from echo_lm.orchestration.cli.main import main; main()"]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="linux-50m")
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder of run.tar.xz")
    parser.add_argument("--kill-at", type=int, default=400, help="kill -9 once this step is done")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="of the evaluations")
    parser.add_argument("--seconds", type=float, default=560, help="stop what is still at work then")
    parser.add_argument("overrides", nargs="*", help="of the recipe, e.g. train.steps=200")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        places = ["--runs", str(runs), "--data", str(options.data)]
        processes = [start(["train", options.recipe, *options.overrides, *places], gpu=0)]
        try:
            run = wait_for_run(runs, processes[0], until)
            watching = ["--watch", f"{runs}/*", "--every", "5s", "--parallel", "2", "--device", options.device]
            processes.append(start(["eval", *watching], gpu=1))
            training = processes[0]
            if killed := kill_at(run, training, options.kill_at, until):
                print(f"killed after step {killed}", flush=True)
                training = start(["train", str(run.path)], gpu=0)
                processes.append(training)
            await_end(training, until)
            await_evaluations(run, until)
        finally:
            for process in processes:
                kill(process)
        write_report(run.path)
        table(run)
        pack(run.path, options.out / "run.tar.xz")
    return 0 if training.returncode == 0 else 1


def start(arguments: list[str], gpu: int | None = None) -> subprocess.Popen:
    """Start an `echo-lm` command on the visible GPU `gpu`, at most the last one; on all of them if None."""
    code = "import torch; print(torch.cuda.device_count())"
    count = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout or 0)
    environment = {"CUDA_VISIBLE_DEVICES": visible_gpus([min(gpu, count - 1)])} if count and gpu is not None else {}
    return subprocess.Popen([*COMMAND, *arguments], env=os.environ | environment, stdin=subprocess.DEVNULL)


def kill(process: subprocess.Popen) -> None:
    """Kill (-9) the process and all of its children."""
    if process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            one.kill()
        process.wait()


def wait_for_run(runs: Path, process: subprocess.Popen, until: float) -> RunFolder:
    """Wait for the run's folder with its configuration; exits when the command failed."""
    while time.monotonic() < until and process.poll() is None:
        if configs := list(runs.glob("*/config.yaml")):
            return RunFolder(configs[0].parent)
        time.sleep(0.2)
    # The command refused its arguments and printed the reason.
    sys.exit(process.poll() or "no run has begun: no time was left")


def last_step(run: RunFolder) -> int:
    """The last step that was done, 0 before the first."""
    return max((event["step"] for event in steps(read_events(run.events_file))), default=0)


def kill_at(run: RunFolder, process: subprocess.Popen, step: int, until: float) -> int | None:
    """Kill the training once `step` is done; returns its last step, or None if it ended by itself."""
    while time.monotonic() < until and process.poll() is None:
        if (last := last_step(run)) >= step:
            kill(process)
            return last
        time.sleep(0.1)
    return None


def await_end(process: subprocess.Popen, until: float) -> None:
    """Wait for the end of the training, or end it at `until`."""
    try:
        process.wait(timeout=max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        kill(process)
        print("the training was stopped: no time was left", flush=True)


def await_evaluations(run: RunFolder, until: float) -> None:
    """Wait for the results of every suite on every checkpoint, at most until `until`."""
    names = [load_suite(suite).name for suite in run.load_config().evaluation.suites]
    while time.monotonic() < until:
        results = [
            result_path(run.path, folder.name, name) for folder, _ in complete_checkpoints(run.path) for name in names
        ]
        if all(path.is_file() for path in results):
            return
        time.sleep(0.5)
    print("not every evaluation is there: no time was left", flush=True)


def table(run: RunFolder) -> None:
    """Print the results of the evaluations, checkpoint by checkpoint."""
    for path in result_files(run.path):
        metrics = read_json(path).get("metrics", {})
        values = {key: round(value, 4) for key, value in sorted(metrics.items()) if value is not None}
        print(path.parent.name, path.stem, dict(list(values.items())[:40]), flush=True)
    print(f"last step {last_step(run)}", flush=True)


def pack(folder: Path, archive: Path) -> None:
    """Pack the run folder without weights."""
    with write_aside(archive) as aside:
        with tarfile.open(aside, "w:xz") as file:
            file.add(folder, folder.name, filter=lambda entry: None if entry.name.endswith(".safetensors") else entry)
        print(f"{archive}: {os.path.getsize(aside) / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
