"""Compile Triton kernels for a GPU machine that has another Triton and Python than this one, to take them there.

    python docker/offline/compile_kernels.py linux-50m run.workers=1                  # a recipe's training, with overrides
    python docker/offline/compile_kernels.py echo-180m:rows echo-180m:segment:documents   # a preset, at the sizes of benchmarks
    python docker/offline/compile_kernels.py evals/sweeps/configs/transfer.yaml       # all arms of a recall sweep
    python docker/offline/collect_bundle.py      # takes what was compiled along

For a machine with the packages of this one `echo-lm compile` is enough; the kernels are found and compiled as there
(kernels/compilation/). What is compiled here lies in ~/.cache/echo-lm/triton-<release>; `use_bundle.sh` makes it
TRITON_CACHE_DIR on the GPU machine, which then compiles nothing. `segment` continues from a state, as sequence parallelism does;
`documents` has borders inside rows. Models of a recall sweep are trained at its lengths and evaluated at those of its queries.

Triton names a compiled kernel by its source, the arguments' types and Triton's own files: so the wheel of the release
that the GPU machine has is fetched, for this Python to run and for that machine's to take the name from.
"""

import argparse
import hashlib
import os
import pkgutil
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

STORE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "echo-lm"
LENGTH, ROWS = 2048, 8  # of a pass of a preset


def triton_wheel(release: str, python: str) -> Path:
    """The folder of an unpacked Triton wheel, fetched if missing."""
    folder = STORE / f"triton-{release}-py{python}"
    if not folder.is_dir():
        platforms = [word for n in (28, 27, 17) for word in ("--platform", f"manylinux_2_{n}_x86_64")]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms]
        target = ["--python-version", python, "--implementation", "cp", "-d", str(folder) + ".wheel"]
        if subprocess.run([*pip, *target, f"triton=={release}"]).returncode:
            sys.exit(f"there is no Triton {release} for Python {python} (above is what pip says)")
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


# What no compilation for an NVIDIA GPU reads, up to Hopper.
UNREAD = (
    "triton/_C/libproton.so",
    "triton/profiler",
    "triton/plugins",
    "triton/instrumentation",
    "triton/backends/amd/lib",  # not the whole folder, which Triton imports
    "triton/backends/nvidia/lib/cupti",
    "triton/backends/nvidia/lib/cupti-blackwell",
    "triton/backends/nvidia/bin/ptxas-blackwell",
    "triton/backends/nvidia/bin/cuobjdump",
    "triton/backends/nvidia/bin/nvdisasm",
)


def slim_triton(release: str, python: str) -> Path:
    """The folder of a Triton wheel without debug symbols and without what no compilation for NVIDIA reads; made if missing."""
    folder = STORE / f"triton-{release}-py{python}-slim"
    if not folder.is_dir():
        partial = Path(str(folder) + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(triton_wheel(release, python), partial)
        for name in UNREAD:
            path = partial / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        subprocess.run(["strip", "--strip-unneeded", partial / "triton/_C/libtriton.so"], check=True)
        partial.rename(folder)
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


def passes_of(name: str, dtype: str, overrides: list[str]) -> list[tuple]:
    """The passes to compile for `name` of the command line: pairs of a model's config and the sizes of a pass."""
    import yaml

    from echo_lm.evals.sweeps.config import load_sweep
    from echo_lm.evals.sweeps.runs import runs_of
    from echo_lm.models import preset
    from echo_lm.pipeline.compilation.kernels import passes_of
    from echo_lm.pipeline.compilation.passes import Pass
    from echo_lm.pipeline.config import load_config

    if ":" in name:
        model, kind, *rest = name.split(":")
        if kind not in ("rows", "segment") or rest not in ([], ["documents"]):
            sys.exit(f"compile_kernels: {name} is none of MODEL:rows, MODEL:segment, each with or without :documents")
        segments = 2 if kind == "segment" else 1
        return [(preset(model), Pass(ROWS, segments * LENGTH, dtype, documents=bool(rest), segments=segments))]
    if not name.endswith(".yaml") or "arms" not in yaml.safe_load(Path(name).read_text(encoding="utf-8")):
        config = load_config(name, overrides)
        model = config.model.resolve(config.data.tokenizer.vocab_size)
        return [(model, sizes) for sizes in passes_of(config)]
    sweep, found = load_sweep(Path(name)), []
    for run in runs_of(sweep):
        half = run.training.precision == "bf16"
        kind = {"dtype": "bfloat16" if half else "float32", "autocast": half, "documents": False}
        found += [(run.config, Pass(run.training.batch_at(length), length, **kind)) for length in run.training.lengths]
        for length in sorted({cell.length for cell in run.cells}):
            rows = max(1, sweep.batch_tokens // length)
            found.append((run.config, Pass(rows, length, **kind, backward=False)))
    return found


def compile_for(wheel: Path, options: argparse.Namespace) -> int:
    """Compile into TRITON_CACHE_DIR with the imported Triton, under the names that the wheel's has for the kernels."""
    from triton.runtime import cache

    from echo_lm.kernels.compilation import cache_folder, compile_kernels, find_target, recorded_kernels
    from echo_lm.pipeline.compilation.passes import run_pass

    key, target, started = key_of(wheel / "triton"), find_target(options.device), time.perf_counter()
    cache.triton_key = lambda: key
    overrides = [word for word in options.what if "=" in word]
    with recorded_kernels(target) as recording:
        for name in options.what:
            for model, sizes in () if name in overrides else passes_of(name, options.dtype, overrides):
                run_pass(model, sizes)
    failed = compiled = 0
    for result in compile_kernels(recording.kernels, target, options.processes):
        failed, compiled = failed + bool(result.error), compiled + (not result.was_there)
        if result.error:
            print(f"{result.name}: {result.error}", file=sys.stderr)
            continue
        (cache_folder() / cache._base32(result.hash)).touch()  # collect_bundle.py takes what was asked for of late
        if not result.was_there:
            print(
                f"{result.name:40} {result.seconds:6.1f} s {result.shared_bytes:>7,} bytes of shared memory", flush=True
            )
    count, seconds = len(recording.kernels), time.perf_counter() - started
    print(f"{cache_folder()}: {count} kernels, {compiled} compiled now, {seconds:.0f} s, {failed} failed")
    return 1 if failed else 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", metavar="RECIPE [key=value]|MODEL:rows|segment[:documents]|SWEEP.yaml")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of presets")
    parser.add_argument("--triton", default="3.6.0", help="the release on the GPU machine")
    parser.add_argument("--carried", action="store_true", help="that release comes with the bundle (collect_bundle.py)")
    parser.add_argument("--python", default="3.12", help="the Python of the GPU machine")
    parser.add_argument("--device", default="h200", help="the GPU there, or its capability such as sm_90")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    runs = triton_wheel(options.triton, here)
    named = (slim_triton if options.carried else triton_wheel)(options.triton, options.python)
    if str(runs) in sys.path:
        return compile_for(named, options)
    environment = dict(os.environ, TRITON_CACHE_DIR=str(STORE / f"triton-{options.triton}"), OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(runs), os.environ.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, "-W", "ignore", *sys.argv], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
