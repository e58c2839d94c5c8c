"""A short run of `echo-lm train` where nothing was compiled, where `echo-lm compile` ran before, and where all is compiled.

    python -m benchmarks.training.cold_start --out rows.json                      # 160 steps of echo-10m on one GPU
    python -m benchmarks.training.cold_start --starts never off train.steps=60    # and each kernel compiled at its first launch
    ECHO_LM_COMPILE=h200 python -m benchmarks.training.cold_start --model echo-1m \
        train.steps=3 train.batch_tokens=8192 train.precision=fp32 run.compile=false    # does the script work? without a GPU

The dataset, Python's standard library, is prepared first and counts nowhere. Each start has caches of Triton and Inductor of its
own; `warm` has those that `never` filled. On a bare GPU machine: `source docker/offline/use_bundle.sh` first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import yaml
from rich.console import Console
from rich.table import Table

from echo_lm.pipeline.run.events import read_events
from echo_lm.pipeline.run.folder import RunFolder

STARTS = {
    "never": "nothing compiled before",
    "before": "kernels compiled before, by `echo-lm compile`",
    "warm": "all compiled before",
    "off": "nothing compiled before, each kernel at its first launch",
}
COMMAND = [sys.executable, "-W", "ignore", "-c", "from echo_lm.orchestration.cli.main import main; main()"]


def recipe(model: str) -> dict:
    """The recipe of the runs: steps of 131,072 tokens at 2,048 under ZeRO 1, bf16 and compiled."""
    return {
        "name": "cold-start",
        "data": {
            "name": "python-stdlib",
            "sources": [{"kind": "python-stdlib", "limit_documents": 800}],
            "tokenizer": {"vocab_size": 8192},
            "heldout_fraction": 0.05,
        },
        "mixture": {"recall": None},
        "model": {"preset": model},
        "train": {
            "sequence_length": 2048,
            "batch_tokens": 131_072,
            "steps": 160,
            "learning_rate": 1e-3,
            "warmup_tokens": 1_000_000,
            "precision": "bf16",
        },
        "run": {"zero_stage": 1, "compile": True, "checkpoint_every": 1000},
        "evaluation": {"suites": []},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="echo-10m")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=("never", "before", "warm"))
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers of every start")
    parser.add_argument("overrides", nargs="*", help="of the recipe, e.g. train.steps=60")
    options = parser.parse_intermixed_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="cold_start_") as folder:
        place = Path(folder)
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe(options.model)))
        echo_lm(place, "prepare", ["--no-ray"], options.overrides, os.environ)
        for start in options.starts:
            rows.append(one_start(place, start, options.overrides))
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    print_table(rows)


def one_start(place: Path, start: str, overrides: list[str]) -> dict:
    """Run the recipe with the caches of the start; returns its row."""
    caches = place / ("never" if start == "warm" else start)
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "ECHO_LM_COMPILE": os.environ.get("ECHO_LM_COMPILE", "on"),
    }
    row = {"start": start, "cores": len(os.sched_getaffinity(0))}
    if start == "before":
        gpu = os.environ.get("ECHO_LM_COMPILE")
        row["compile_command_seconds"] = echo_lm(
            place, "compile", ["--device", gpu] if gpu else [], overrides, environment
        )
    if start == "off":
        environment["ECHO_LM_COMPILE"] = "off"
    row["run_seconds"] = echo_lm(place, "train", ["--runs", str(place / start)], overrides, environment)
    events = read_events(RunFolder(place / start / "cold-start").events_file)
    steps = [event for event in events if event["kind"] == "step"]
    (startup,) = [event for event in events if event["kind"] == "startup"]
    row |= {"first_step_seconds": startup["total_seconds"], "phases": startup["phases"]}
    waits = [after["time"] - before["time"] for before, after in pairwise(steps)]
    row |= {"step_ms": round(1000 * median(waits), 1), "longest_later_step_seconds": round(max(waits), 2)}
    compiles = [event for event in events if event["kind"] == "compile"]
    row["compiled_at_launch"] = [name for event in compiles for name in event.get("at_launch", [])]
    compiles = [event for event in compiles if "waited_seconds" in event]
    keys = ("kernels", "compiled", "seconds", "waited_seconds")
    row["compile"] = {key: compiles[-1][key] for key in keys} if compiles else None
    row["kernels_in_cache"] = len(list((caches / "triton").glob("*/*.cubin")))
    return row


def echo_lm(place: Path, command: str, arguments: list[str], overrides: list[str], environment) -> float:
    """Run a command of `echo-lm` on the recipe; returns the seconds that it took."""
    data = [] if command == "compile" else ["--data", str(place / "data")]
    started = time.monotonic()
    process = subprocess.run(
        [*COMMAND, command, str(place / "recipe.yaml"), *overrides, *arguments, *data], env=environment
    )
    if process.returncode:
        sys.exit(f"cold_start: echo-lm {command} ended with exit code {process.returncode}")
    return round(time.monotonic() - started, 1)


def print_table(rows: list[dict]) -> None:
    """Print the seconds of every start."""
    table = Table("start", "whole run, s", "first step after, s", "phases, s", "a step, ms", "kernels compiled")
    for row in rows:
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["phases"].items())
        compiled = row["compile"] and f"{row['compile']['compiled']} of {row['compile']['kernels']}"
        table.add_row(
            STARTS[row["start"]],
            f"{row['run_seconds']:.0f}",
            f"{row['first_step_seconds']:.0f}",
            phases,
            f"{row['step_ms']:.0f}",
            compiled or "not before the first step",
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
