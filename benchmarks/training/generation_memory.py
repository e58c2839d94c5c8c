"""Peak memory of `generate` against the length of the prompt: flat for Echo, growing for the hybrid.

Each point is a process of its own, whose peak resident size is taken over that of the same process with the model
loaded and a prompt of one segment read. Writes docs/figures/generation_memory.png and prints the numbers.

    python -m benchmarks.training.generation_memory
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

FIGURE = Path(__file__).parents[2] / "docs" / "figures" / "generation_memory.png"
MODELS = {"echo-1m": "Echo (Mamba-2 + SKA)", "hybrid-1m": "hybrid (Mamba-2 + attention)"}
LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768, 65536]
NEW_TOKENS = 32


def measure(name: str, length: int) -> dict:
    """Bytes and seconds of one generation, in this process."""
    import torch

    from echo_lm.models import build_model, generate, prefill, preset

    torch.set_num_threads(1)
    model = build_model(preset(name, vocab_size=512))
    prompt = torch.randint(0, 512, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    generate(model, [prompt[:1024]], max_new_tokens=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    generate(model, [prompt], max_new_tokens=NEW_TOKENS)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, cache = prefill(model, torch.tensor([prompt]))
    return {"name": name, "length": length, "peak": 1024 * (peak - before), "state": cache.nbytes(), "seconds": seconds}


def draw(points: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4), dpi=100, sharex=True)
    for (name, label), colour in zip(MODELS.items(), ("#1f77b4", "#d62728"), strict=True):
        rows = [p for p in points if p["name"] == name]
        lengths = [p["length"] for p in rows]
        left.plot(lengths, [p["peak"] / 2**20 for p in rows], "o-", color=colour, label=label)
        right.plot(lengths, [p["state"] / 2**20 for p in rows], "o-", color=colour, label=label)
    left.set(title="peak memory above that at 1k tokens", ylabel="MiB")
    right.set(title="state of one sequence", ylabel="MiB", yscale="log")
    left.legend(fontsize=8)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(LENGTHS, [f"{length // 1024}k" for length in LENGTHS])
        axis.set_xlabel("tokens of context")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--point", nargs=2, metavar=("MODEL", "LENGTH"), help="measure one point and print it as JSON")
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(arguments.point[0], int(arguments.point[1]))))
        return
    points = []
    for name in MODELS:
        for length in LENGTHS:
            command = [sys.executable, "-m", "benchmarks.training.generation_memory", "--point", name, str(length)]
            points.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(
                "{name:10} {length:6} tokens  peak +{peak:11,} B  state {state:11,} B  {seconds:6.1f} s".format(
                    **points[-1]
                )
            )
    draw(points)


if __name__ == "__main__":
    main()
