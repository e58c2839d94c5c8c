"""One decoding step of SKA, the operation alone, as a CUDA graph: the kernel beside PyTorch, after short and long contexts.

Needs a CUDA device. Checks the kernel against float64 first and measures nothing if it is wrong. Times are medians of
replays; bytes are what a step must read and write, in fp32 as the state is.

    python -m benchmarks.kernels.ska_decode --out benchmarks/results
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from echo_lm.kernels.ska import DecodeState, SKAState, ska_step, start_decoding
from echo_lm.models.common.provenance import commit

HEADS, RANK, WIDTH = 12, 48, 64
STEPS = 20  # in one graph: the launch of a graph takes longer than a step


def state_after(tokens: int, batch: int, dtype: torch.dtype = torch.float32) -> DecodeState:
    """A state with the moments of that after so many random unit keys."""
    generator = torch.Generator("cuda").manual_seed(tokens)
    past = torch.randn(batch, HEADS, 4 * RANK, RANK, generator=generator, device="cuda", dtype=torch.float64)
    gram = past.mT @ past * (tokens / (4 * RANK * RANK))
    other = torch.randn(batch, HEADS, RANK + WIDTH, RANK, generator=generator, device="cuda", dtype=torch.float64)
    other *= (tokens / RANK) ** 0.5
    last = F.normalize(past[:, :, 0], dim=-1)
    sums = SKAState(*(x.to(dtype).contiguous() for x in (gram, other[:, :, :RANK], other[:, :, RANK:], last)))
    return start_decoding(sums, ridge=1e-3)


def inputs(batch: int) -> list[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    shapes = (RANK, RANK, WIDTH)
    q, k, v = (torch.randn(batch, HEADS, d, generator=generator, device="cuda") for d in shapes)
    return [x.bfloat16() for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)]


def error(backend: str) -> float:
    """Relative error of 20 steps against float64."""
    q, k, v = inputs(4)
    state, exact_state = state_after(1024, 4), state_after(1024, 4, torch.float64)
    worst = 0.0
    for i in range(20):
        key = k.roll(i, -1)
        y = ska_step(q, key, v, state, backend=backend).double()
        exact = ska_step(q.double(), key.double(), v.double(), exact_state, backend="torch")
        worst = max(worst, float((y - exact).norm() / exact.norm()))
    return worst


def microseconds(batch: int, context: int, backend: str) -> float:
    """Median microseconds of a step, over graphs of STEPS steps."""
    state, (q, k, v) = state_after(context, batch), inputs(batch)
    scale = torch.ones(HEADS, device="cuda")

    def steps() -> None:
        for _ in range(STEPS):
            ska_step(q, k, v, state, scale=scale, backend=backend)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        steps()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steps()
    times = []
    for _ in range(30):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / STEPS)
    return round(median(times), 2)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON rows")
    options = parser.parse_args()
    # y leaves in bf16: half a unit in its last place is 2e-3, relative.
    worst = error("triton")
    print(f"largest relative error {worst:.1e} (PyTorch in fp32: {error('torch'):.1e})")
    if not worst <= 8e-3:
        print("the kernel is wrong: nothing is measured", file=sys.stderr)
        return 1
    hardware = torch.cuda.get_device_name()
    rows = []
    for backend in ("triton", "torch"):
        for batch in (1, 8, 64, 256):
            for context in (1024, 131_072, 1_048_576):
                # Gram, transition, inverse factor, value map and last key, read and written.
                moved_bytes = 2 * 4 * batch * HEADS * (3 * RANK**2 + WIDTH * RANK + RANK)
                time = microseconds(batch, context, backend)
                row = {"backend": backend, "batch": batch, "context": context, "step_us": time, "bytes": moved_bytes}
                row["gb_per_s"] = round(moved_bytes / time / 1e3, 1)
                rows.append(row)
                print(" ".join(f"{value!s:>10}" for value in row.values()), flush=True)
    record = {"hardware": hardware, "date": str(date.today()), "commit": commit()}
    record["shape"] = {"heads": HEADS, "rank": RANK, "value_width": WIDTH, "power": 1}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"ska_decode_{hardware.split()[1].lower()}_{date.today()}.json"
    path.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
