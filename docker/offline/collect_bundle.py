"""Collect the offline bundle of a bare GPU machine (Python 3.12, torch and triton, no network) in the ignored folder `bundle/`.

    python docker/offline/collect_bundle.py            # before each time: then take the checkout and bundle/ to the machine
    source docker/offline/use_bundle.sh                # on that machine: PYTHONPATH with the packages and echo_lm

Wheels of compiled packages are fetched for the target's Python; pure Python ones are copied from this environment. Kernels that
`compile_kernels.py` has compiled go along, without the listings that Triton keeps beside them; and the commit, which results
there are stamped with. `--rivals` takes flash-linear-attention along, for its rows in `benchmarks/kernels/ska.py`; `--tests`
takes both it and pytest, for a machine that has neither:

    OMP_NUM_THREADS=1 python -m pytest -m gpu --noconftest -p no:cacheprovider -n 16 tests/kernels/test_fused_gpu.py

(tests/conftest.py is for tests of runs and data, and wants packages that are not bundled.)

`--triton 3.7.1` takes a release of Triton along that the machine does not have, without debug symbols and what no
compilation for NVIDIA reads (41 MiB instead of 189); there it comes first after `carried_triton=3.7.1 source ...`.
"""

import argparse
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from importlib import util
from importlib.metadata import files, packages_distributions, version
from pathlib import Path

from compile_kernels import STORE, slim_triton

from echo_lm.models.common.provenance import commit

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundle"
KERNELS_THERE = "/tmp/echo-lm-triton"  # TRITON_CACHE_DIR of use_bundle.sh
PYTHON_VERSION = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
COMPILED = ("pydantic-core", "zstandard")
PURE = (
    "deepspeed",
    "mamba_ssm",
    "pydantic",
    "annotated_types",
    "typing_inspection",
    "omegaconf",
    "tenacity",
    "hjson",
    "einops",
    "yaml",
)
TESTS = (
    "pytest",
    "_pytest",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "py",
    "xdist",
    "execnet",
    "pytest_timeout",
)
# Their release wants transformers, which `benchmarks/kernels/ska.py` does without; no kernel lies in its models.
RIVALS = ("flash-linear-attention==0.6.0", "fla-core==0.6.0")
UNUSED = ("fla/models",)
# Kernels resemble each other: what the window holds counts for more than effort.
COMPRESSION = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 5, "dict_size": 2**26}]


def main() -> None:
    """Make the archives of `bundle/` anew and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true", help="pytest, pytest-xdist and flash-linear-attention as well")
    parser.add_argument("--rivals", action="store_true", help="flash-linear-attention as well")
    parser.add_argument("--triton", metavar="RELEASE", help="this release of Triton as well")
    parser.add_argument("--hours", type=float, default=24 * 365, help="only kernels that were asked for so lately")
    options = parser.parse_args()
    pure = (*PURE, *(TESTS if options.tests else ()))
    BUNDLE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy_packages(Path(folder), pure, options.rivals or options.tests)
        (Path(folder) / "commit").write_text(commit() + "\n")
        pack(Path(folder), BUNDLE / "site.tar.xz")
    release = BUNDLE / f"triton-{options.triton}.tar.xz"
    if options.triton and not release.exists():
        pack(slim_triton(options.triton, PYTHON_VERSION), release)
    for other in {*BUNDLE.glob("triton-*.tar.xz")} - {release}:
        other.unlink()
    with tempfile.TemporaryDirectory() as folder:
        copy_kernels(Path(folder), time.time() - 3600 * options.hours)
        pack(Path(folder), BUNDLE / "triton_cache.tar.xz")


def pack(folder: Path, archive: Path) -> None:
    """Pack all files in `folder` into one archive."""
    with lzma.open(archive, "wb", filters=COMPRESSION) as file, tarfile.open(fileobj=file, mode="w|") as tar:
        tar.add(folder, ".")
    print(f"{archive.relative_to(ROOT)}: {archive.stat().st_size / 2**20:.1f} MiB")


def copy_packages(site: Path, pure: Iterable[str], rivals: bool) -> None:
    """Copy the packages that the machine imports, with the metadata that some of them read."""
    for package in pure:
        spec = util.find_spec(package)
        if spec is None:
            sys.exit(f"{package} is not installed here: run `make test` once, it installs everything")
        if not spec.submodule_search_locations:  # a module of one file
            shutil.copy(spec.origin, site)
            continue
        source = Path(spec.submodule_search_locations[0])
        shutil.copytree(source, site / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    fetch([f"{package}=={version(package)}" for package in COMPILED], site)
    if rivals:
        fetch(RIVALS, site)
        for folder in UNUSED:
            shutil.rmtree(site / folder)
    for library in site.rglob("*.so"):
        subprocess.run(["strip", "--strip-unneeded", library], check=True)
    # Metadata that packages read of themselves at import, and pytest of its plugins.
    distributions = packages_distributions()
    for package in (*pure, *COMPILED):
        for name in distributions[package.replace("-", "_")]:
            metadata = next(file for file in files(name) if file.name == "METADATA").locate().parent
            shutil.copytree(metadata, site / metadata.name, dirs_exist_ok=True)


def fetch(requirements: Iterable[str], site: Path) -> None:
    """Install wheels for the target's Python, in one call: wheels that share a folder would replace each other's files."""
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    target = ["--python-version", PYTHON_VERSION, "--implementation", "cp", *platforms, "--target", str(site)]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", "--upgrade", *target]
    subprocess.run([*pip, *requirements], check=True)


def copy_kernels(folder: Path, since: float) -> None:
    """Copy the kernels compiled after `since`, with the absolute paths in Triton's files changed to `KERNELS_THERE`."""
    for compiled in STORE.glob("triton-*[0-9]/*/*.cubin"):
        if compiled.parent.stat().st_mtime < since:
            continue
        name, target = compiled.parent.name, folder / compiled.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for file in (compiled, *compiled.parent.glob("*.json")):
            shutil.copyfile(file, target / file.name)
        (group,) = target.glob("__grp__*.json")
        paths = {file: f"{KERNELS_THERE}/{name}/{file}" for file in json.loads(group.read_text())["child_paths"]}
        group.write_text(json.dumps({"child_paths": paths}))


if __name__ == "__main__":
    main()
