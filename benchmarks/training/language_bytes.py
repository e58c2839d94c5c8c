"""Bits per byte of arms that differ in their SKA layers, trained on the bytes of Python source that this machine has.

    python -m benchmarks.training.language_bytes --out rows.json --steps 1200 --seeds 0 1    # a process for each arm and seed

Without a tokenizer a model's nats per token are those per byte. A twentieth of the files, chosen by the hash of their contents, is
held out; equal contents count once.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import sysconfig
from datetime import date
from pathlib import Path

from echo_lm.models.common.provenance import commit

ONCE, OWN_START = {"key_shift": 0, "value_shift": 0}, {"tied_start": False}
ARMS = {
    "late-tied": {},  # presets of version 2
    "late": OWN_START,
    "tied": ONCE,
    "version-1": {**ONCE, **OWN_START},
    "ungated": {**ONCE, **OWN_START, "write_gate": "none"},
}
LENGTH, STEP_TOKENS, HELD_OUT_BYTES, PEAK = 512, 32_768, 4_000_000, 2e-3
VOCABULARY = 512  # 256 are used; the least that a recipe takes is 386


def read_source() -> tuple[bytes, bytes]:
    """The Python files of the standard library and of the packages beside it: bytes to train on and held-out bytes."""
    folders = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    seen = set()
    for file in sorted(file for folder in folders for file in Path(folder).rglob("*.py")):
        content = file.read_bytes()
        digest = hashlib.sha256(content).digest()
        if content and digest not in seen:
            seen.add(digest)
            parts[digest[0] % 20 == 0].append(content)
    return b"\n".join(parts[0]), b"\n".join(parts[1])[:HELD_OUT_BYTES]


def train(arm: str, seed: int, model: str, steps: int, device: str) -> dict:
    """Train one arm; returns its row."""
    import numpy as np
    import torch

    from benchmarks.training.case import Case, make_config, random_batch

    source, held_out = (np.frombuffer(part, dtype=np.uint8).astype(np.int64) for part in read_source())
    rows = STEP_TOKENS // LENGTH
    changed = {"ska": ARMS[arm]} if ARMS[arm] else None
    config = make_config(
        model, LENGTH, STEP_TOKENS, rows, compile=False, device=device, vocabulary=VOCABULARY, changed=changed
    ).model_copy(update={"seed": seed})
    case = Case(config)
    generator = np.random.default_rng(seed)

    def batch(tokens: np.ndarray, starts: np.ndarray):
        window = torch.from_numpy(tokens[starts[:, None] + np.arange(LENGTH + 1)])
        whole = random_batch(rows, LENGTH, VOCABULARY)
        whole.tokens.copy_(window[:, :-1])
        whole.labels.copy_(window[:, 1:])
        return whole

    curve = []
    for step in range(steps):
        rate = PEAK * min(1.0, (step + 1) / (0.05 * steps)) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        loss = case.step(batch(source, generator.integers(0, len(source) - LENGTH - 1, rows)), rate)[1]
        if step % max(1, steps // 20) == 0:
            curve.append(round(loss / math.log(2), 4))
    nats = []
    with torch.no_grad():
        for first in range(0, len(held_out) - LENGTH * rows - 1, LENGTH * rows):
            part = batch(held_out, first + LENGTH * np.arange(rows))
            logits = case.engine.module(part.tokens.to(case.device)).float()
            nats.append(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), part.labels.to(case.device).flatten()).item()
            )
    return {
        "arm": arm,
        "seed": seed,
        "model": model,
        "steps": steps,
        "bytes_trained": steps * STEP_TOKENS,
        "bytes_of_source": len(source),
        "bits_per_byte": round(sum(nats) / len(nats) / math.log(2), 5),
        "curve": curve,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="echo-1m")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train(options.one[0], int(options.one[1]), options.model, options.steps, options.device)))
        return 0
    gpus = int(subprocess.run(["sh", "-c", "nvidia-smi -L 2>/dev/null | wc -l"], capture_output=True, text=True).stdout)
    running = []
    for number, (arm, seed) in enumerate((arm, seed) for seed in options.seeds for arm in options.arms):
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.training.language_bytes",
            "--out",
            str(options.out),
        ]
        command += [
            "--one",
            arm,
            str(seed),
            "--model",
            options.model,
            "--steps",
            str(options.steps),
            "--device",
            options.device,
        ]
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {})
        running.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        )
    rows = []
    for process in running:
        output = process.communicate()[0]
        row = next((line for line in reversed(output.splitlines()) if line.startswith("{")), None)
        rows.append(json.loads(row) if row else {"failed": output[-2000:]})
        options.out.write_text(
            json.dumps({"date": str(date.today()), "commit": commit(), "gpus": gpus, "rows": rows}, indent=1)
        )
        print({key: value for key, value in rows[-1].items() if key != "curve"}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
