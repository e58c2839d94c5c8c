"""Compile the Triton kernels of models without their GPU, so that a time-limited session on one need not.

    python docker/offline/compile_kernels.py echo-180m:rows echo-180m:segment echo-50m:rows:documents
    python docker/offline/compile_kernels.py --dtype float32 evals/sweeps/configs/transfer.yaml
    python docker/offline/collect_bundle.py      # takes what was compiled along

A layer has some 30 kernels, and the larger ones take a minute of one core each. What is compiled here lies in
~/.cache/echo-lm/triton-<release>; `use_bundle.sh` makes it TRITON_CACHE_DIR on the GPU machine, which then compiles nothing.
`segment` continues from a state, as sequence parallelism does; `documents` has borders inside rows; a recall sweep stands
for all of its arms, trained at its lengths and asked at those of its questions. Each layer's operation runs forward and
backward on CPU tensors that nobody reads, and every launch only compiles. Compiled are the variants for fp32 or bf16 inputs
(--dtype) in exact or chunk mode (the model's own). Weights are of the same dtype; those of a sweep's models are fp32 (autocast).

Triton names a compiled kernel by its source, the arguments' types and Triton's own files: so the wheel of the release
that the GPU machine has is fetched, for this Python to run and for that machine's to take the name from.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import pkgutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

STORE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "echo-lm"
LENGTH = 2048
LONGEST = 4096  # of a sweep's questions: the kernels of longer ones are the same, but their tensors here are not small


def triton_wheel(release: str, python: str) -> Path:
    """The folder of an unpacked Triton wheel, fetched if missing."""
    folder = STORE / f"triton-{release}-py{python}"
    if not folder.is_dir():
        platforms = [word for n in (28, 27, 17) for word in ("--platform", f"manylinux_2_{n}_x86_64")]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms]
        target = ["--python-version", python, "--implementation", "cp", "-d", str(folder) + ".wheel"]
        subprocess.run([*pip, *target, f"triton=={release}"], check=True)
        (wheel,) = Path(str(folder) + ".wheel").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(str(folder) + ".partial")
            for file in archive.infolist():  # the compiler's own programs; zipfile drops what may be executed
                if mode := file.external_attr >> 16 & 0o111:
                    path = Path(str(folder) + ".partial", file.filename)
                    path.chmod(path.stat().st_mode | mode)
        os.rename(str(folder) + ".partial", folder)
        wheel.unlink()
    return folder


def key_of(package: Path) -> str:
    """Triton's key of its own files, part of the names of compiled kernels, for the wheel in `package`.

    Computed as by `triton.runtime.cache.triton_key`; the Triton that is imported here is of the same release.
    """
    import triton

    def digests(folder: str) -> list[str]:
        modules = pkgutil.walk_packages([str(package / folder)], prefix=f"triton.{folder}.")  # imports subpackages
        return [digest(Path(library.module_finder.find_spec(library.name).origin)) for library in modules]

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    own = [digest(package / "runtime" / "cache.py"), *digests("compiler"), *digests("backends")]
    return triton.__version__ + "-".join([*own, digest(package / "_C" / "libtriton.so"), *digests("language")])


def compile_only(share: int, shares: int, capability: int, wheel: Path) -> None:
    """Let Triton compile for a GPU of that compute capability and launch nothing; every `shares`-th kernel is compiled here."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import cache, driver
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    from echo_lm.kernels.launch import Launcher

    class NoGPU:
        get_current_target = staticmethod(lambda: GPUTarget("cuda", capability, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    driver.set_active(NoGPU())
    key, folder = key_of(wheel / "triton"), Path(os.environ["TRITON_CACHE_DIR"])
    cache.triton_key = lambda: key
    launches, run = itertools.count(), JITFunction.run

    def compile_kernel(self, *arguments, grid, warmup, **options):
        started = time.perf_counter()
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        seconds = time.perf_counter() - started
        (folder / cache._base32(kernel.hash)).touch()  # collect_bundle.py takes what was asked for of late
        if seconds > 1:  # else it was there
            print(
                f"{self.__name__:40} {seconds:6.1f} s {kernel.metadata.shared:>7,} bytes of shared memory", flush=True
            )

    def compile_every_configuration(self, *arguments, **options):
        self.best_config = self.configs[0]
        if next(launches) % shares == share:
            for config in self.configs:
                self.fn.run(*arguments, **options, **config.all_kwargs())

    def compile_one(self, grid, *arguments):
        if next(launches) % shares == share:
            self._kernel[grid](*arguments, **self._constants)

    JITFunction.run = compile_kernel
    Autotuner.run = compile_every_configuration
    Launcher.__call__ = compile_one
    torch.cuda.device = torch.cuda.device_of = lambda *_: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=132)


def layers_of(name: str) -> list[tuple]:
    """The layers to compile for `name` of the command line: (config, dtype of the weights if not that of the
    inputs, length, segment, documents, whether there is a backward)."""
    from echo_lm.evals.measurements.recall_cells import grid_cells
    from echo_lm.evals.sweeps.config import load_sweep
    from echo_lm.evals.sweeps.runs import runs_of
    from echo_lm.models import preset

    if not name.endswith(".yaml"):
        model, *rest = name.split(":")
        return [(preset(model), None, LENGTH, "segment" in rest, "documents" in rest, True)]
    sweep = load_sweep(Path(name))
    runs = runs_of(sweep)
    configs = {run.arm: run.config for run in runs}
    lengths = sorted({cell.length for grid in sweep.recall for cell in grid_cells(grid) if cell.length <= LONGEST})
    trained_lengths = {(run.arm, length) for run in runs for length in run.training.lengths if length <= LONGEST}
    trained_layers = [(configs[arm], "float32", length, False, False, True) for arm, length in sorted(trained_lengths)]
    return trained_layers + [
        (config, "float32", length, False, False, False) for config in configs.values() for length in lengths
    ]


def run_layer(
    config, kind: str, dtype: str, weights: str | None, length: int, segment: bool, documents: bool, backward: bool
) -> None:
    """Run forward and, with `backward`, backward of one layer of `kind`, if the model has one."""
    import torch

    from echo_lm.kernels.ska import SKAState
    from echo_lm.kernels.ska.fused.normalize_and_gate import normalize_and_gate_fused
    from echo_lm.kernels.ska.fused.op import ska_fused
    from echo_lm.kernels.ssd.fused import ssd_fused
    from echo_lm.kernels.ssd.fused_convolution import convolve
    from echo_lm.kernels.ssd.scan import chunk_size_of, mamba_ssm_kernel

    if kind not in config.layers:
        return
    batch, weights = 1 if segment else 2, getattr(torch, weights or dtype)
    starts = torch.zeros(batch, length, dtype=torch.bool)
    starts[:, min(100, length // 2)] = True

    def empty(*shape: int) -> torch.Tensor:
        return torch.zeros(batch, length, *shape, dtype=getattr(torch, dtype)).requires_grad_(backward)

    with torch.set_grad_enabled(backward):
        if kind == "ska":
            ska, heads = config.ska, config.ska.num_heads
            width = config.d_model // heads
            state = SKAState.zeros(batch, heads, ska.rank, width)
            state = SKAState(*(part.requires_grad_(backward) for part in state)) if segment else None
            options = dict(
                mode=ska.mode, power=ska.power, ridge=ska.ridge, chunk_size=ska.grid or 64, value_lag=ska.value_lag
            )
            q, k, v = empty(heads, ska.rank), empty(heads, ska.rank), empty(heads, width)
            if ska.normalization == "l2":
                gated = ska.write_gate != "none"
                columns = 8 * -(-heads * (2 * ska.rank + width + gated) // 8)
                bias = torch.zeros(heads, dtype=weights, requires_grad=backward) if gated else None
                q, k, v = normalize_and_gate_fused(empty(columns), bias, heads, ska.rank, width, ska.write_gate)
            y, _ = ska_fused(
                q,
                k,
                v,
                scale=torch.ones(heads),
                starts=starts if documents else None,
                state=state,
                return_state=False,
                **options,
            )
        else:
            mamba = config.mamba2
            heads, states = mamba.expand * config.d_model // mamba.headdim, (mamba.ngroups, mamba.d_state)
            inner, channels = heads * mamba.headdim, heads * mamba.headdim + 2 * mamba.ngroups * mamba.d_state
            projected = empty(8 * -(-(inner + channels + heads) // 8))
            taps = torch.zeros(channels, mamba.d_conv, dtype=weights, requires_grad=backward)
            bias = torch.zeros(channels, dtype=weights, requires_grad=backward)
            ids = starts.cumsum(1).to(torch.int32) if documents else None
            parts = (inner, *2 * (mamba.ngroups * mamba.d_state,))
            first = empty(channels)[:, : mamba.d_conv - 1] if segment else None
            z = [
                part  # of the whole rows; and of a segment's tail, whose first tokens are its own
                for previous in dict.fromkeys((first, None))
                for part in convolve(projected[..., inner : inner + channels], taps, bias, ids, previous, True, parts)
            ]
            dt = torch.ones(batch, length, heads, requires_grad=backward)
            a, d = torch.ones(heads), torch.ones(heads, dtype=weights)
            state = (
                torch.zeros(batch, heads, mamba.headdim, mamba.d_state).requires_grad_(backward) if segment else None
            )
            x, b, c = empty(heads, mamba.headdim), empty(*states), empty(*states)
            a, d = a.requires_grad_(backward), d.requires_grad_(backward)
            y, _ = mamba_ssm_kernel()(
                x,
                dt,
                a,
                b,
                c,
                chunk_size=chunk_size_of(length),
                D=d,
                initial_states=state,
                seq_idx=ids,
                return_final_states=True,
            )
            y = y.sum() + sum(part.sum() for part in z)
            options = dict(chunk_size=None, starts=starts if documents else None, state=state)
            y = y + ssd_fused(x, dt, a, b, c, d, **options)[0].sum()
    if backward:
        y.sum().backward()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="+", metavar="MODEL:rows|segment[:documents]|TABLE.yaml")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--kinds", nargs="+", choices=("ska", "mamba2"), default=("ska", "mamba2"))
    parser.add_argument("--triton", default="3.6.0", help="the release on the GPU machine")
    parser.add_argument("--python", default="3.12", help="the Python of the GPU machine")
    parser.add_argument("--capability", type=int, default=90, help="compute capability of the GPU: 90 is Hopper")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share is not None:
        wheel = triton_wheel(options.triton, options.python)
        compile_only(options.share, options.processes, options.capability, wheel)
        for name in options.layers:
            for layer, kind in itertools.product(layers_of(name), options.kinds):
                run_layer(layer[0], kind, options.dtype, *layer[1:])
        return 0
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    runs = triton_wheel(options.triton, here)
    triton_wheel(options.triton, options.python)
    environment = dict(os.environ, TRITON_CACHE_DIR=str(STORE / f"triton-{options.triton}"), OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(runs), os.environ.get("PYTHONPATH")]))
    started = time.perf_counter()
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", sys.argv[0], "--share", str(i), *sys.argv[1:]], env=environment
        )
        for i in range(options.processes)
    ]
    failed = sum(child.wait() != 0 for child in children)
    folder = Path(environment["TRITON_CACHE_DIR"])
    print(
        f"{folder}: {len(list(folder.glob('*/*.cubin')))} kernels, {time.perf_counter() - started:.0f} s, {failed} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
