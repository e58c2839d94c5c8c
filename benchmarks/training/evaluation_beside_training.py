"""The cost of evaluations on other cores for the training: step times and checkpoints, with and without a full queue of suites.

    python -m benchmarks.training.evaluation_beside_training data benchmarks/results/evaluation_beside_training_HARDWARE_DATE.json

`data` holds the dataset of recipe `smoke` (`echo-lm prepare smoke`). Linux, two cores or more, about eight minutes. A model of
1M parameters trains in one process that is pinned to one core; `echo-lm eval --watch`, pinned to another, works on a queue
of four suites that grows with every checkpoint and is never done. The queue is stopped and continued (SIGSTOP, SIGCONT) in
windows A B B A: what drifts evenly cancels in each four. What else runs on the machine does not cancel: the queue's core
pushes it onto the training's. So a four counts only if nothing else took more than a tenth of a core in any of its windows.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from scipy.stats import bootstrap

from echo_lm.evals.layout import complete_steps, result_files
from echo_lm.models.common.run_layout import EVALUATION_LEASES
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.run.events import read_events
from echo_lm.pipeline.run.folder import RunFolder

SUITES = ("recall-quick", "language", "length-quick", "capacity")
OVERRIDES = ["model.d_model=128", "train.sequence_length=128", "train.batch_tokens=1024", "train.steps=1000000"]
OVERRIDES += ["run.workers=1", "run.zero_stage=1", "run.checkpoint_every=40", "run.device=cpu"]
FOURS, WINDOW_SECONDS, EDGE_SECONDS = 10, 10.0, 0.5
MOST_FOURS, OTHERS_SHARE = 30, 0.1
BUSY_SHARE = 0.5  # of a core: less than that, and the queue was not busy in its windows


@contextmanager
def pinned(core: int, *command: str) -> Iterator[subprocess.Popen]:
    """Context with a command and its children on one core; killed at the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        try:
            yield process
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"{command} ended: {log.read().decode()[-2000:]}")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def cpu_seconds(group: int) -> float:
    """CPU seconds of a process group so far, ended children included."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """CPU seconds of all processes of the machine so far."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system  # evaluations are niced


def measure(training: int, watcher: int) -> tuple[list[dict], int]:
    """Measure groups of four windows; returns the windows of valid groups and the number of invalid groups.

    Each has `four`, `busy`, `start`, `end` (unix seconds), and of a core: `cpu_share` of the evaluations, `others_share`.
    """
    windows: list[dict] = []
    for trial in range(MOST_FOURS):
        four = []
        for evaluating in (False, True, True, False):
            os.killpg(watcher, signal.SIGCONT if evaluating else signal.SIGSTOP)
            start, before = time.time(), (cpu_seconds(training), cpu_seconds(watcher), machine_seconds())
            time.sleep(WINDOW_SECONDS)
            end, after = time.time(), (cpu_seconds(training), cpu_seconds(watcher), machine_seconds())
            train, evaluations, whole = ((b - a) / (end - start) for a, b in zip(before, after, strict=True))
            shares = {"cpu_share": evaluations, "others_share": whole - train - evaluations}
            four.append({"four": len(windows) // 4, "busy": evaluating, "start": start, "end": end, **shares})
        if max(window["others_share"] for window in four) <= OTHERS_SHARE:
            windows += four
        if len(windows) == 4 * FOURS:
            return windows, trial + 1 - FOURS
    sys.exit(f"not a measurement: of {MOST_FOURS} fours {len(windows) // 4} had the machine for themselves")


def summarise(windows: list[dict], events: list[dict], every: int) -> dict:
    """Step times and checkpoints of each kind of window, and the slowdown with its 95% interval (bootstrap over the fours)."""
    times = {event["step"]: event["time"] for event in events if event["kind"] == "step"}
    written = {event["step"]: event for event in events if event["kind"] == "checkpoint"}
    for window in windows:
        first, last = window["start"] + EDGE_SECONDS, window["end"]
        inside = [step for step, at in times.items() if first <= times.get(step - 1, 0) and at <= last]
        window["seconds_a_step"] = float(np.mean([times[step] - times[step - 1] for step in inside]))
        due = [step for step in inside if step % every == 0 and step in written]
        window["checkpoints"] = [[written[step][key] for key in ("seconds", "stall_seconds")] for step in due]

    def mean(four: int, evaluating: bool) -> float:
        return float(np.mean([w["seconds_a_step"] for w in windows if w["four"] == four and w["busy"] == evaluating]))

    slowdowns = [mean(four, True) / mean(four, False) - 1 for four in range(FOURS)]
    interval = bootstrap((slowdowns,), np.mean, method="basic", rng=0).confidence_interval
    kinds = {}
    for evaluating, name in ((False, "idle"), (True, "busy")):
        some = [window for window in windows if window["busy"] == evaluating]
        checkpoints = np.array([one for window in some for one in window["checkpoints"]]).reshape(-1, 2)
        kinds[name] = {
            "seconds_a_step": float(np.mean([window["seconds_a_step"] for window in some])),
            "evaluation_cpu_share": float(np.mean([window["cpu_share"] for window in some])),
            "checkpoints": len(checkpoints),
            "checkpoint_seconds_median": float(np.median(checkpoints[:, 0])),
            "checkpoint_seconds_most": float(checkpoints[:, 0].max()),
            "stall_seconds_most": float(checkpoints[:, 1].max()),
        }
    late = [step for step in range(every, max(times), every) if step not in written and step + every <= max(times)]
    return {
        "slowdown": float(np.mean(slowdowns)),
        "slowdown_low": float(interval.low),
        "slowdown_high": float(interval.high),
        "slowdown_of_each_four": slowdowns,
        "checkpoints_missing": late,
        **kinds,
    }


def main() -> None:
    data, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("needs two cores")
    config = load_config("smoke", OVERRIDES)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "runs" / "beside")
        run.prepare(config, data / config.data.name)
        suites = [word for suite in SUITES for word in ("--suite", suite)]
        watch = [
            "-c",
            "from echo_lm.orchestration.cli.main import main; main()",
            "eval",
            "--watch",
            str(run.path),
            "--every",
            "1s",
            *suites,
        ]
        train = ["-c", "import sys; from echo_lm.pipeline.loop import train; train(sys.argv[1])", str(run.path)]
        with pinned(cores[0], *train) as training, pinned(cores[-1], *watch) as watcher:
            deadline = time.time() + 300
            while not list(run.path.glob(EVALUATION_LEASES)):  # the first suite has begun
                if training.poll() is not None or watcher.poll() is not None or time.time() > deadline:
                    break
                time.sleep(0.2)
            windows, disturbed = measure(training.pid, watcher.pid)
        events = read_events(run.events_file)
        done = len(result_files(run.path))
        complete = len(complete_steps(run.path))
    report = summarise(windows, events, config.run.checkpoint_every)
    report |= {
        "disturbed_fours": disturbed,
        "results": done,
        "jobs_left": len(SUITES) * complete - done,
        "machine": platform.machine(),
        "cores": cores,
    }
    print(
        f"{'suites':8}{'ms a step':>10}{'eval CPU':>10}{'checkpoints':>13}{'median s':>10}{'most s':>8}{'stall s':>9}"
    )
    for name in ("idle", "busy"):
        row = report[name]
        print(
            f"{name:8}{1e3 * row['seconds_a_step']:10.1f}{row['evaluation_cpu_share']:10.0%}{row['checkpoints']:13}"
            f"{row['checkpoint_seconds_median']:10.3f}{row['checkpoint_seconds_most']:8.3f}{row['stall_seconds_most']:9.3f}"
        )
    print(
        f"training slowed by {report['slowdown']:.1%} (95%: {report['slowdown_low']:.1%} to {report['slowdown_high']:.1%}); "
        f"{done} results, {report['jobs_left']} jobs still queued, checkpoints missing: {report['checkpoints_missing'] or 'none'}"
    )
    if report["busy"]["evaluation_cpu_share"] < BUSY_SHARE or report["jobs_left"] <= 0:
        sys.exit("not a measurement: the queue of suites was not full")
    output.write_text(json.dumps(report | {"windows": windows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
