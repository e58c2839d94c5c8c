"""Collect what a bare GPU machine (Python 3.12, torch and triton installed, no network) lacks, in the ignored folder `carry/`.

    python benchmarks/collect_carry.py            # then take the checkout and carry/ to the machine
    source benchmarks/use_carry.sh                # on that machine: PYTHONPATH with the packages and echo_lm

Wheels of compiled packages are fetched for the target's Python; pure Python ones are copied from this environment. Kernels that
`compile_kernels.py` has compiled go along, without the listings that Triton keeps beside them.
"""

import json
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

from compile_kernels import STORE

ROOT = Path(__file__).resolve().parent.parent
CARRY = ROOT / "carry"
KERNELS_THERE = "/tmp/echo-lm-triton"  # TRITON_CACHE_DIR of use_carry.sh
PYTHON_VERSION = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
COMPILED = ("pydantic-core",)
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


def main() -> None:
    """Fill `carry/site` afresh and print its size."""
    site = CARRY / "site"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for package in PURE:
        found = util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            sys.exit(f"{package} is not installed here: run `make test` once, it installs everything")
        source = Path(found.submodule_search_locations[0])
        shutil.copytree(source, site / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for package in COMPILED:
        version = subprocess.run(
            [sys.executable, "-c", f"from importlib.metadata import version; print(version({package!r}))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
        target = ["--python-version", PYTHON_VERSION, "--implementation", "cp", *platforms, "--target", str(site)]
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--upgrade",
            *target,
        ]
        subprocess.run([*install, f"{package}=={version}"], check=True)
    # Metadata that packages read of themselves at import.
    for package in (*PURE, *COMPILED):
        for metadata in Path(util.find_spec("pydantic").submodule_search_locations[0]).parent.glob(
            f"{package.replace('-', '_')}-*.dist-info"
        ):
            shutil.copytree(metadata, site / metadata.name, dirs_exist_ok=True)
    kernels = CARRY / "triton_cache"
    copy_kernels(kernels)
    for folder in (site, kernels):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{folder.relative_to(ROOT)}: {size / 2**20:.1f} MiB")


def copy_kernels(folder: Path) -> None:
    """Compiled kernels as they shall lie in `KERNELS_THERE`: Triton notes absolute paths."""
    shutil.rmtree(folder, ignore_errors=True)
    for compiled in STORE.glob("triton-*[0-9]/*/*.cubin"):
        name, target = compiled.parent.name, folder / compiled.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for file in (compiled, *compiled.parent.glob("*.json")):
            shutil.copyfile(file, target / file.name)
        (group,) = target.glob("__grp__*.json")
        paths = {file: f"{KERNELS_THERE}/{name}/{file}" for file in json.loads(group.read_text())["child_paths"]}
        group.write_text(json.dumps({"child_paths": paths}))


if __name__ == "__main__":
    main()
