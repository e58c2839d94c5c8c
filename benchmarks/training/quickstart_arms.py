"""Arms of a recipe side by side: train each as a process of its own, evaluate its last checkpoint, one table.

    python -m benchmarks.training.quickstart_arms arms.yaml --out results.json [--parallel 8] [--device cuda]

`arms.yaml` maps an arm's name to a list of overrides; the key `common` holds those of every arm. Used to choose what the
quickstart ships (docs/tutorials/quickstart.md gives the outcome).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import torch
import yaml

from echo_lm.evals.layout import result_files
from echo_lm.models.common.files import read_json
from echo_lm.pipeline.run.events import read_events
from echo_lm.pipeline.run.folder import RunFolder

COMMAND = [sys.executable, "-c", "from echo_lm.orchestration.cli.main import main; main()"]


def run_arm(name: str, overrides: list[str], recipe: str, folder: Path, data: Path, device: str) -> dict:
    """Train and evaluate one arm; returns its row."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = folder / f"{name}.log"
    started = time.time()
    train = [*COMMAND, "train", recipe, f"name={name}", f"run.device={device}", *overrides]
    evaluate = [*COMMAND, "eval", str(folder / name), "--device", device]
    with open(log, "w") as output:
        for command in ([*train, "--runs", str(folder), "--data", str(data)], evaluate):
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
            if code:
                return {"arm": name, "failed": log.read_text().strip().splitlines()[-1]}
    metrics, recall = {}, {}
    for file in result_files(folder / name)[-2:]:
        result = read_json(file)
        metrics |= result["metrics"]
        recall |= {
            f"{row['task']}-{row['pairs']}@{row['length']}": row["accuracy"] for row in result["rows"] if "task" in row
        }
    events = read_events(RunFolder(folder / name).events_file)
    curve = [(e["step"], e["loss_recall"]) for e in events if e["kind"] == "step" and e["step"] % 50 == 0]
    return {
        "arm": name,
        "overrides": overrides,
        "seconds": time.time() - started,
        "metrics": metrics,
        "recall": recall,
        "curve": curve,
    }


def main() -> None:
    """Run all arms, a few at a time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", type=Path)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs-arms"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    arms = yaml.safe_load(options.arms.read_text())
    common = arms.pop("common", [])
    options.runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.parallel) as pool:
        rows = list(
            pool.map(
                lambda arm: run_arm(
                    arm[0], [*common, *arm[1]], options.recipe, options.runs, options.data, options.device
                ),
                arms.items(),
            )
        )
    hardware = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.processor()} {os.cpu_count()} cores"
    )
    options.out.write_text(json.dumps({"hardware": hardware, "date": str(date.today()), "rows": rows}, indent=1))
    columns = ["sysprompt-4@64", "sysprompt-4@256", "sysprompt-4@1024", "sysprompt-8@64", "tooltrace-4@64", "mqar-8@64"]
    print(f"{'arm':28s} {'s':>5s} {'bpb':>6s} " + " ".join(f"{c:>16s}" for c in columns))
    for row in rows:
        if "failed" in row:
            print(f"{row['arm']:28s} failed: {row['failed']}")
            continue
        bits = next((value for key, value in row["metrics"].items() if key.endswith("bits_per_byte")), float("nan"))
        scores = " ".join(f"{row['recall'].get(c, float('nan')):16.3f}" for c in columns)
        print(f"{row['arm']:28s} {row['seconds']:5.0f} {bits:6.3f} {scores}")


if __name__ == "__main__":
    main()
