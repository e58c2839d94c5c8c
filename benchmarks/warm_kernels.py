"""Compile the Triton kernels that models will need into TRITON_CACHE_DIR, many processes at once.

    python benchmarks/warm_kernels.py echo-180m:rows echo-180m:segment echo-50m:rows:documents [--processes 4]

A layer compiles some 25 kernels one after another, seconds each. Here every process runs a layer's forward and backward pass
but launches only its share of the kernels (results are garbage, which nobody reads); a later process finds all of
them compiled. `segment` continues from a state, as sequence parallelism does; `documents` has borders inside rows.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time

LENGTH = 2048


def launch_only(share: int, shares: int) -> None:
    """Let this process launch every `shares`-th kernel; must come before the kernels are imported."""
    from triton.runtime.autotuner import Autotuner

    from echo_lm.kernels.ska.fused.launch import Launcher

    launches = itertools.count()

    def shared(launch):
        def maybe(*arguments, **options):
            return launch(*arguments, **options) if next(launches) % shares == share else None

        return maybe

    Autotuner.run = shared(Autotuner.run)
    Launcher.__call__ = shared(Launcher.__call__)


def run_layer(name: str, kind: str, segment: bool, documents: bool) -> None:
    """Forward and backward of the operation of one layer in bf16, with the sizes of the model `name`."""
    import torch

    from echo_lm.kernels.ska import SKAState, ska_attention
    from echo_lm.kernels.ssd import ssd_scan
    from echo_lm.models import preset

    config = preset(name)
    batch = 1 if segment else 2
    borders = torch.tensor([0, 100, LENGTH, batch * LENGTH][: batch + 2], device="cuda") if documents else None

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(batch, LENGTH, *shape, device="cuda") * 0.1).bfloat16().requires_grad_()

    if kind == "ska":
        heads, rank, width = config.ska.num_heads, config.ska.rank, config.d_model // config.ska.num_heads
        state = SKAState.zeros(batch, heads, rank, width, device="cuda") if segment else None
        if state is not None:
            state = SKAState(*(part.requires_grad_() for part in state))
        y = ska_attention(
            random(heads, rank), random(heads, rank), random(heads, width), cu_seqlens=borders, state=state
        )
    else:
        mamba = config.mamba2
        heads, states = mamba.expand * config.d_model // mamba.headdim, (mamba.ngroups, mamba.d_state)
        dt = torch.rand(batch, LENGTH, heads, device="cuda").mul(0.1).requires_grad_()
        a, d = (torch.ones(heads, device="cuda", requires_grad=True) for _ in range(2))
        shape = batch, heads, mamba.headdim, mamba.d_state
        state = torch.zeros(shape, device="cuda", requires_grad=True) if segment else None
        x, b, c = random(heads, mamba.headdim), random(*states), random(*states)
        y = ssd_scan(x, dt, -a, b, c, d=d.bfloat16(), state=state, cu_seqlens=borders)
    y.sum().backward()
    torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="+", metavar="MODEL:rows|segment[:documents]")
    parser.add_argument("--processes", type=int, default=4, help="for each kind of layer")
    parser.add_argument("--share", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=("ska", "mamba2"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share:
        launch_only(*options.share)
        name, *rest = options.layers[0].split(":")
        run_layer(name, options.kind, "segment" in rest, "documents" in rest)
        return 0
    cases = list(itertools.product(("ska", "mamba2"), options.layers, range(options.processes)))
    gpus = itertools.cycle(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(","))
    started, running = time.perf_counter(), {}
    for kind, layer, i in cases:
        command = [sys.executable, "-W", "ignore", __file__, layer, "--kind", kind]
        running[kind, layer, i] = subprocess.Popen(
            [*command, "--share", str(i), str(options.processes)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": next(gpus), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    failed = 0
    for case, process in running.items():
        output, _ = process.communicate()
        failed += process.returncode != 0
        if process.returncode:
            print(f"{case}: {' | '.join(output.strip().splitlines()[-2:])}")
    print(f"{len(cases)} processes, {failed} failed, {time.perf_counter() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
