"""The cost of failures in a large run: the training overhead ratio, ideal time over observed time (arXiv 2408.07482).

    python -m benchmarks.faults.training_overhead --trials benchmarks/results/failures_*.json --out benchmarks/results

Measured here: bytes a second of writing, stalling and loading a checkpoint (`--preset`, one rank, one disk), and from the rows of
`failure_trials.py` the seconds to detect a failure and to train again. Computed from them, for `--model` at a mean time
to failure M: training stands still s seconds for a checkpoint, every t seconds, and a failure costs the time to detect it, to
start and load again, and what was trained since the checkpoint that is complete: half an interval, and the w seconds that one
takes to be written. The overhead is

    s / t + (detect + restart + load + t / 2 + w) / M

least at t = sqrt(2 s M) (Young 1974), and the ratio is 1 / (1 + overhead).
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.models import build_model, preset
from echo_lm.models.common.files import write_json
from echo_lm.pipeline.checkpoint.format import check_checkpoint, latest_checkpoint
from echo_lm.pipeline.checkpoint.reader import load_checkpoint
from echo_lm.pipeline.checkpoint.writer import CheckpointWriter
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.engine import build_engine, join_process_group
from echo_lm.pipeline.mesh import make_mesh
from echo_lm.pipeline.run.folder import RunFolder

BYTES_A_PARAMETER = 16  # fp32 weights and both moments for resuming, fp32 weights for evaluations
MEAN_HOURS = {"1,024 GPUs": 7.9, "16,384 GPUs": 1.8}  # between failures (arXiv 2410.21680, projected there)
TARGETS = {"1,024 GPUs": 0.97, "16,384 GPUs": 0.93}


def measure(name: str, folder: Path) -> dict[str, float]:
    """Measure bytes and seconds of one checkpoint of a preset: stall, completion, check and load."""
    config = load_config("smoke", ["run.workers=1", "run.zero_stage=1"])
    run = RunFolder(folder / "run")
    run.prepare(config, prepare_data(config, folder))
    model = [f"model.preset={name}", f"model.d_model={preset(name).d_model}"]  # instead of the toy width of the recipe
    config = load_config("smoke", ["run.workers=1", "run.zero_stage=1", *model])
    device = torch.device("cpu")
    join_process_group(device)
    engine = build_engine(config, 8192, device, make_mesh(1))
    writer = CheckpointWriter(engine, run, config, step=0)
    writer.begin(1, 512)
    writer.finish()
    written = writer.completed()
    assert written is not None
    os.sync()
    started = time.perf_counter()
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    check_checkpoint(checkpoint)
    load_checkpoint(engine, checkpoint)
    return {
        "bytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()),
        "seconds": written.seconds,
        "stall_seconds": written.stall_seconds,
        "load_seconds": time.perf_counter() - started,
    }


def prepare_data(config, folder: Path) -> Path:
    prepare(config.data, folder / "data")
    return folder / "data" / config.data.name


def ratio(size: float, speed: dict[str, float], detect: float, restart: float, mean_seconds: float) -> dict[str, float]:
    """The ratio at the best interval for a checkpoint of `size` bytes, with its components in seconds."""
    stall, write, load = (size / speed[name] for name in ("stall", "write", "load"))
    interval = max(math.sqrt(2 * stall * mean_seconds), write)  # one at a time
    overhead = stall / interval + (detect + restart + load + interval / 2 + write) / mean_seconds
    return {
        "interval_seconds": interval,
        "stall_seconds": stall,
        "write_seconds": write,
        "load_seconds": load,
        "detect_seconds": detect,
        "restart_seconds": restart,
        "ratio": 1 / (1 + overhead),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", type=Path, required=True)
    parser.add_argument("--preset", default="echo-50m")
    parser.add_argument("--model", default="echo-880m")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [row for path in arguments.trials for row in json.loads(path.read_text())["rows"]]
    failed = [row for row in rows if row.get("detect") is not None and row.get("recover") is not None]
    detect = statistics.fmean(row["detect"] for row in failed)
    restart = statistics.fmean(row["recover"] - row["detect"] for row in failed)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments.preset, Path(folder))
    size = measured["bytes"]
    speed = {
        "stall": size / measured["stall_seconds"],
        "write": size / measured["seconds"],
        "load": size / measured["load_seconds"],
    }
    parameters = sum(p.numel() for p in build_model(preset(arguments.model), device="meta").parameters())
    computed = {
        name: ratio(BYTES_A_PARAMETER * parameters, speed, detect, restart, hours * 3600)
        for name, hours in MEAN_HOURS.items()
    }
    result = {
        "hardware": f"{psutil.cpu_count()} CPU cores, one disk",
        "preset": arguments.preset,
        "measured": measured,
        "bytes_per_second": speed,
        "failures": len(failed),
        "model": arguments.model,
        "checkpoint_bytes": BYTES_A_PARAMETER * parameters,
        "computed": computed,
        "load": os.getloadavg()[0],
    }
    write_json(arguments.out / f"training_overhead_{time.strftime('%Y-%m-%d')}.json", result)
    print(json.dumps(result, indent=2))
    return 0 if all(computed[name]["ratio"] >= target for name, target in TARGETS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
