"""What a look at 500 runs costs, one of them with a log of 2,000,000 lines: pages, polls, `status`, memory.

    python -m benchmarks.dashboard.looks [--runs 500] [--lines 2000000]

The server is `echo-lm serve` in a process of its own; times are those of its answers over HTTP, the best and the median of several.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import yaml

from echo_lm.models.common.run_layout import CONFIG, EVENTS, FINISHED
from echo_lm.pipeline.config import load_config

LINES = 600  # of an ordinary log
COMMAND = [sys.executable, "-c", "from echo_lm.orchestration.cli.main import main; main()"]


def write_runs(root: Path, runs: int, lines: int) -> None:
    """Write finished runs of 600 steps, the last of them with many more."""
    config: dict[str, Any] = {}
    for number in range(runs):
        count = lines if number == runs - 1 else LINES
        folder = root / f"run-{number:04d}"
        folder.mkdir(parents=True)
        overrides = [f"name={folder.name}", f"train.steps={count}", "run.checkpoint_every=100"]
        if number in (0, runs - 1):
            config = load_config("smoke", overrides).resolved()
        config = config | {"name": folder.name}
        (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        (folder / FINISHED).write_text(json.dumps({"step": count}))
        with open(folder / EVENTS, "w") as file:
            file.write(json.dumps({"kind": "start", "time": 1.7e9, "step": 0, "tokens": 0, "world_size": 1}) + "\n")
            for step in range(1, count):
                file.write(step_line(step))
        for path in (*folder.iterdir(), folder):
            os.utime(path, (1.75e9, 1.75e9))


def step_line(step: int) -> str:
    """A `step` event as training writes it."""
    loss = 2 + 8 / (1 + step / 1000)
    numbers = {"loss": loss + step % 7 / 50, "loss_text": loss, "loss_recall": loss / 2, "bits_per_byte": loss / 2.08}
    numbers |= {
        "grad_norm": step % 997 / 500,
        "learning_rate": 0.001,
        "tokens": step * 512,
        "tokens_per_second": 5432.1,
    }
    numbers |= {"mfu": 0.37, "memory_gib": 0.61, "data_stall_seconds": 0.0003}
    return json.dumps({"kind": "step", "time": 1.7e9 + step / 4, "step": step} | numbers) + "\n"


def seconds_of(address: str, repeat: int = 1) -> tuple[list[float], bytes]:
    """Seconds of each of `repeat` requests, and the last answer."""
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        body = urllib.request.urlopen(address, timeout=300).read()
        seconds.append(time.perf_counter() - began)
    return seconds, body


def measure(root: Path, runs: int) -> dict[str, float | str]:
    """Start the server and measure its answers."""
    began = time.perf_counter()
    process = subprocess.Popen([*COMMAND, "serve", "--port", "0"], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().split()[1]
        found: dict[str, float | str] = {"listening after (s)": time.perf_counter() - began}
        long = f"run-{runs - 1:04d}"
        found["first page of all runs, while the log is read (s)"] = seconds_of(address)[0][0]
        while True:  # until the long log was read
            live = json.loads(seconds_of(f"{address}/live/runs/{long}?since=")[1])
            if "still to be read" not in live["parts"]["head"]:
                break
            time.sleep(0.5)
        found["long log read after (s)"] = time.perf_counter() - began
        found["page of all runs (s)"] = min(seconds_of(address, 3)[0])
        found["first page of the long run (s)"] = seconds_of(f"{address}/runs/{long}")[0][0]
        found["its curves (s)"] = seconds_of(f"{address}/live/runs/{long}?since=")[0][0]
        time.sleep(1.2)
        version = json.loads(seconds_of(f"{address}/live/runs/{long}?since=")[1])["version"]
        token = seconds_of(address)[1].split(b'data-version="')[1].split(b'"')[0].decode()
        for name, path in (("the long run", f"runs/{long}?since={version}"), ("all runs", f"runs?since={token}")):
            polls = []
            for _ in range(15):
                time.sleep(0.7)  # most of them look at the files again, which is done once a second
                polls += seconds_of(f"{address}/live/{path}")[0]
            found[f"unchanged poll of {name}, median (ms)"] = 1000 * statistics.median(polls)
            found[f"unchanged poll of {name}, most (ms)"] = 1000 * max(polls)
        for number in range(40):
            seconds_of(f"{address}/live/runs/run-{number:04d}?since=")
        found["resident memory (MB)"] = psutil.Process(process.pid).memory_info().rss / 1e6
        found["most resident memory (MB)"] = peak_memory(process.pid)
        return found
    finally:
        process.terminate()
        process.wait(30)


def peak_memory(pid: int) -> float:
    """The largest resident memory that a process had, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def measure_status(root: Path) -> dict[str, float]:
    """The seconds of `echo-lm status` of all runs, as a command and of its table alone."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run([*COMMAND, "status"], cwd=root, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    code = "import time; from pathlib import Path\nfrom echo_lm.orchestration.monitor.status import Status, find_runs\n"
    code += "b = time.perf_counter(); s = Status(); s.table(find_runs([], Path('runs'))); m = time.perf_counter()\n"
    code += "s.table(find_runs([], Path('runs'))); print(m - b, time.perf_counter() - m)"
    out = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout
    first, again = map(float, out.split())
    times = {"status, the command (s)": whole, "status, the command, of a processor (s)": processor}
    return times | {"status, its table (s)": first, "status, its table again (s)": again}


def main() -> None:
    """Write the runs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--lines", type=int, default=2_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_runs(root / "runs", options.runs, options.lines)
        for name, value in (measure(root, options.runs) | measure_status(root)).items():
            print(f"{name:50} {value:10.3f}", flush=True)


if __name__ == "__main__":
    main()
