"""Times of the configurations of mamba-ssm's kernels at the shapes of our models: the basis of `kernels/ssd/tuning.py`.

    ECHO_LM_MAMBA_AUTOTUNE=all python -m benchmarks.kernels.mamba2_tuning --out DIR

Runs the scan forward and backward with fresh choices for every shape, and keeps what Triton's autotuner measures. Kernels of a
few microseconds are measured as fast as the host launches them, so that what counts are the large shapes. All 125 take
minutes to compile; the record of 26 November 2026 has no more than two of each kernel, which is what earlier measurements had
left, and none of the four kernels that these shapes do not launch or that had one left. On a machine without our packages:
`source docker/offline/use_bundle.sh` first.
"""

import argparse
import math
import os
import sys
from datetime import date
from pathlib import Path

import torch
from triton.runtime.autotuner import Autotuner

from benchmarks.reporting import hardware, write
from echo_lm.kernels.ssd import ssd_scan
from echo_lm.kernels.ssd.tuning import blocks_of
from echo_lm.models import preset
from echo_lm.models.common.provenance import commit

# model, rows, tokens a row, dtype, whether documents begin inside rows, whether a state enters
SHAPES = [
    ("echo-50m", 64, 2048, "bfloat16", True, False),
    ("echo-180m", 32, 2048, "bfloat16", False, False),
    ("echo-880m", 8, 2048, "bfloat16", False, False),
    ("echo-50m", 1, 262_144, "bfloat16", False, True),
    ("echo-1m", 512, 64, "float32", False, False),
]


def inputs(model: str, rows: int, length: int, dtype: torch.dtype, documents: bool, state: bool) -> tuple[list, dict]:
    """Arguments of `ssd_scan` as in a layer of the model."""
    config = preset(model)
    mamba = config.mamba2
    heads = mamba.expand * config.d_model // mamba.headdim
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype).requires_grad_()

    x = random(rows, length, heads, mamba.headdim)
    b, c = (random(rows, length, mamba.ngroups, mamba.d_state) for _ in range(2))
    dt = torch.rand(rows, length, heads, generator=generator, device="cuda").mul(0.1).requires_grad_()
    a = -torch.arange(1.0, heads + 1, device="cuda").requires_grad_()
    borders = torch.arange(0, rows * length + 1, length // 2, device="cuda") if documents else None
    entering = torch.zeros(rows, heads, mamba.headdim, mamba.d_state, device="cuda") if state else None
    return [x, dt, a, b, c], {"d": torch.ones(heads, device="cuda"), "cu_seqlens": borders, "state": entering}


def measure(shape: tuple) -> list[dict]:
    """Measure the rows {kernel, blocks, microseconds} of one shape, forward and backward."""
    microseconds: dict[tuple, float] = {}
    cleared_kernels: list[Autotuner] = []
    run = Autotuner.run

    def watched(kernel, *arguments, **options):
        if kernel not in cleared_kernels:
            cleared_kernels.append(kernel)
            kernel.cache.clear()
            kernel.cache_results = False  # on disk
        before = getattr(kernel, "configs_timings", None)
        result = run(kernel, *arguments, **options)
        timings = getattr(kernel, "configs_timings", None)
        if timings is not before:
            for config, times in timings.items():
                microseconds[kernel.base_fn.__name__, blocks_of(config), config.num_warps, config.num_stages] = (
                    1e3 * times[0]
                )
        return result

    model, rows, length, dtype, documents, state = shape
    arguments, options = inputs(model, rows, length, getattr(torch, dtype), documents, state)
    Autotuner.run = watched
    try:
        y = ssd_scan(*arguments, **options, backend="mamba-ssm")
        torch.autograd.grad(y, arguments, torch.ones_like(y))
    finally:
        Autotuner.run = run
    about = dict(zip(("model", "rows", "length", "dtype", "documents", "state"), shape, strict=True))
    return [
        about | dict(kernel=name, blocks=blocks, warps=warps, stages=stages, microseconds=round(time, 1))
        for (name, blocks, warps, stages), time in microseconds.items()
        if math.isfinite(time)  # one that does not fit into the GPU has no time
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args()
    if os.environ.get("ECHO_LM_MAMBA_AUTOTUNE") != "all":
        parser.error(
            "without ECHO_LM_MAMBA_AUTOTUNE=all there is one configuration of each kernel and nothing to measure"
        )
    if not torch.cuda.is_available():
        parser.error("no CUDA device is visible: these kernels run on GPUs only")
    name, rows = hardware("cuda"), []
    gpu = name.replace("80GB HBM3", "").split()[-1].lower()
    options.out.mkdir(parents=True, exist_ok=True)
    for shape in SHAPES:
        shape_rows = measure(shape)
        rows += shape_rows
        print(*shape)
        for kernel in dict.fromkeys(row["kernel"] for row in shape_rows):
            times = [f"{row['blocks']} {row['microseconds']:g}" for row in shape_rows if row["kernel"] == kernel]
            print(f"  {kernel:42} us: {', '.join(times)}", flush=True)
        record = {"hardware": name, "date": str(date.today()), "commit": commit(), "rows": rows}
        write(options.out / f"mamba2_tuning_{gpu}_{date.today()}.json", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
