"""The wheel holds every module: an unlisted subpackage works when editable and is missing from the wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "models", "data_prep", "evals", "pipeline", "orchestration")


def test_wheel_holds_every_source_file_and_imports(tmp_path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("echo_lm/")}
    expected = {
        f"echo_lm/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for pattern in ("*.py", "*.yaml", "*.html", "*.css", "*.js", "*.svg")
        for path in (ROOT / folder).rglob(pattern)
        if "__pycache__" not in path.parts
    }
    assert packed == expected

    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in packed if name.endswith(".py")
    )
    code = f"import importlib, sys\nsys.path.insert(0, {str(target)!r})\n"
    code += "for name in sys.argv[1:]: importlib.import_module(name)\nprint(sys.modules['echo_lm.kernels'].__file__)"
    process = subprocess.run(
        [sys.executable, "-c", code, *modules], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip().splitlines()[-1].startswith(str(target))
