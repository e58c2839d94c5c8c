"""The Mamba-2 scan with our kernels and with mamba-ssm's, and the compiled Mamba-2 layer over either, in one process.

Needs a CUDA device; mamba-ssm if its rows are wanted. Output, final state and all gradients are first compared with the
chunked form in float64; nothing is timed if one is wrong. Times are medians of CUDA events; `graph_ms` is forward +
backward replayed as a CUDA graph, which leaves the host out. `kernels_us` is the device time of each kernel of a forward +
backward. On a machine without our packages: `source benchmarks/use_carry.sh` first.

    python -m benchmarks.kernels.ssd --out benchmarks/results
    python -m benchmarks.kernels.ssd --out DIR --shapes echo-180m --no-layers
"""

import argparse
import json
import sys
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.ska import empty_device, time
from echo_lm.kernels.ssd import ssd_scan
from echo_lm.models import preset
from echo_lm.models.common.provenance import commit
from echo_lm.models.mixers import mamba2
from echo_lm.models.mixers.mamba2 import Mamba2

TOKENS = 32_768
SHAPES = [("echo-180m", 2048), ("echo-180m", 16_384), ("echo-50m", 2048), ("echo-10m", 2048)]
BACKENDS = ("mamba-ssm", "triton")
NAMES = ("y", "state", "dx", "ddt", "da", "db", "dc", "dd", "dstate")
# The largest error of the kernels in each dtype of x, b and c; dt, a, d and states are fp32.
BOUND = {torch.float32: 1e-4, torch.bfloat16: 8e-3}


def draw(batch: int, length: int, heads: int, width: int, states: int, dtype: torch.dtype) -> list[Tensor]:
    """x, dt, a, b, c, d and an entering state as a layer at its start has them."""
    generator = torch.Generator("cuda").manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    dt = F.softplus(randn(batch, length, heads) - 3)
    a = -torch.linspace(1, 16, heads, device="cuda")
    b, c = (randn(batch, length, 1, states).to(dtype) for _ in range(2))
    return [randn(batch, length, heads, width).to(dtype), dt, a, b, c, randn(heads), randn(batch, heads, width, states)]


def evaluate(inputs: list[Tensor], backend: str, dtype: torch.dtype | None, borders: Tensor | None) -> list[Tensor]:
    """Output, final state and the gradients of all inputs; `dtype` replaces that of the inputs."""
    leaves = [t.to(dtype or t.dtype).requires_grad_() for t in inputs]
    x, dt, a, b, c, d, state = leaves
    outputs = ssd_scan(x, dt, a, b, c, d=d, state=state, return_state=True, cu_seqlens=borders, backend=backend)
    generator = torch.Generator("cuda").manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, device="cuda").to(inputs[0].dtype) for t in outputs]
    loss = sum((t.double() * w.double()).sum() for t, w in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def errors(backend: str, dtype: torch.dtype, documents: bool, states: int) -> dict[str, float]:
    """Relative errors against float64; a NaN counts as infinite."""
    inputs = draw(2, 700, 6, 64, states, dtype)
    borders = torch.tensor([0, 90, 700, 810, 811, 1400], device="cuda", dtype=torch.int32) if documents else None
    wanted = evaluate(inputs, "torch", torch.float64, borders)
    found = evaluate(inputs, backend, None, borders)
    named = zip(NAMES, found, wanted, strict=True)
    off = {name: float((a.double() - b).norm() / b.norm()) for name, a, b in named}
    return {name: error if error == error else float("inf") for name, error in off.items()}


def check() -> bool:
    """Print the largest errors of our kernels and say whether all are within their bounds."""
    green = True
    for dtype, documents, states in product(BOUND, (False, True), (16, 64, 128)):
        off = errors("triton", dtype, documents, states)
        worst = max(off, key=off.__getitem__)
        green &= off[worst] <= BOUND[dtype]
        kind = f"{str(dtype)[6:]:9} d_state {states:3} {'documents' if documents else 'rows'}"
        print(f"{kind:34} largest error {off[worst]:.1e} ({worst}), bound {BOUND[dtype]:.0e}", flush=True)
    return green


def graph_of(step) -> "torch.cuda.CUDAGraph":
    side = torch.cuda.Stream()  # a capture wants its warm-up beside the default stream
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def kernels_of(step, count: int = 5) -> dict[str, float]:
    """Device microseconds of each kernel of a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    found = {event.key: event.self_device_time_total / count for event in profile.key_averages()}
    return {name[:60]: round(us, 1) for name, us in sorted(found.items(), key=lambda item: -item[1]) if us > 0.5}


def measure(forward, wanted: list[Tensor], kernels: bool) -> dict:
    """Times of `forward()` and of its gradients of `wanted`, and peak memory beyond what was there before."""
    before = empty_device()
    dy = torch.randn_like(forward())

    def both() -> None:
        torch.autograd.grad(forward(), wanted, dy, allow_unused=True)

    def alone() -> None:
        with torch.no_grad():
            forward()

    found = {"forward_ms": time(alone), "forward_backward_ms": time(both)}
    torch.cuda.reset_peak_memory_stats()
    both()
    torch.cuda.synchronize()
    found["peak_gib"] = round((torch.cuda.max_memory_allocated() - before) / 2**30, 3)
    found["graph_ms"] = time(graph_of(both).replay)
    if kernels:
        found["kernels_us"] = kernels_of(both)
    return found


def measure_scan(model: str, length: int, backend: str) -> dict:
    """The scan alone, of one layer of `model`."""
    config = preset(model)
    mamba = config.mamba2
    heads = mamba.expand * config.d_model // mamba.headdim
    *inputs, _ = draw(TOKENS // length, length, heads, mamba.headdim, mamba.d_state, torch.bfloat16)
    x, dt, a, b, c, d = (t.requires_grad_() for t in inputs)
    return measure(lambda: ssd_scan(x, dt, a, b, c, d=d, backend=backend), [x, dt, a, b, c, d], True)


def measure_layer(model: str, length: int, backend: str) -> dict:
    """The whole layer, compiled, in bf16."""
    config = preset(model)
    torch._dynamo.reset()
    mamba2.ssd_scan = partial(ssd_scan, backend=backend)
    try:
        layer = Mamba2(config.d_model, config.mamba2, 1)
        with torch.no_grad():
            layer.initialize(torch.Generator().manual_seed(0))
            layer.norm.weight.fill_(1.0)
        layer = layer.to("cuda", torch.bfloat16)
        x = torch.randn(TOKENS // length, length, config.d_model, device="cuda", dtype=torch.bfloat16).requires_grad_()
        compiled = torch.compile(layer)
        return measure(lambda: compiled(x), [x, *layer.parameters()], True)
    finally:
        mamba2.ssd_scan = ssd_scan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON rows")
    parser.add_argument("--shapes", nargs="+", metavar="MODEL", help="only those of these models")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--layers", action=argparse.BooleanOptionalAction, default=True, help="whole layers too")
    options = parser.parse_args()
    if not check():
        print("the kernels are wrong: nothing is measured", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"ssd_{name.split()[1].lower()}_{date.today()}.json"
    rows = []
    shapes = [shape for shape in SHAPES if options.shapes is None or shape[0] in options.shapes]
    for kind, shape, backend in product(("scan", "layer")[: 1 + options.layers], shapes, options.backends):
        row = dict(kind=kind, model=shape[0], length=shape[1], tokens=TOKENS, backend=backend)
        try:
            row |= (measure_scan if kind == "scan" else measure_layer)(*shape, backend)
        except Exception as error:  # a row that fails, in any words, leaves the others
            row["failed"] = (str(error) or repr(error)).splitlines()[0]
        rows.append(row)
        print(" ".join(f"{value!s:>10}" for key, value in row.items() if key != "kernels_us"), flush=True)
        record = {"hardware": name, "date": str(date.today()), "commit": commit(), "rows": rows}
        path.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
