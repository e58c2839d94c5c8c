"""Run a study on a GPU machine in time-limited sessions, each of which resumes the one before.

    python -m benchmarks.studies.study_on_gpu study-code-h100 --data DIR --out DIR --seconds 560
    python -m benchmarks.studies.study_on_gpu study-code-h100 --data DIR --out DIR --seconds 560 --archive study-code-h100.tar.xz

The dataset is prepared unless it exists. DIR gets `NAME.tar.xz`: the study's folder with its finished cells, without weights; it
is rewritten after every cell, so that losing the machine loses only running cells. A cell that is predicted to end later is not
started; one that runs when the time is up restarts in the next session. Unpack the archive anywhere: `echo-lm study status`,
`report` and `track` work on it. All visible GPUs are used.
Nothing here needs Ray or MLflow.
On a bare GPU machine: `source docker/offline/use_bundle.sh` first.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch
import yaml

from benchmarks.training.whole_run import kill, start
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import write_aside
from echo_lm.orchestration.studies.cell import result_file
from echo_lm.orchestration.studies.config import StudyConfig, load_study
from echo_lm.orchestration.studies.export import import_study
from echo_lm.orchestration.studies.run import StudyFolder

PACKING = 30.0  # seconds reserved for packing, and for ending running cells
POLL_SECONDS = 2.0  # between checks for finished cells
STARTING = 15.0  # until `study run` begins to count
EXCLUDED = (".safetensors", ".tmp")  # weights, and files that are being written


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study's name or its YAML file")
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME.tar.xz")
    parser.add_argument("--archive", type=Path, help="NAME.tar.xz of an earlier session, or a report's study.json")
    parser.add_argument("--seconds", type=float, required=True, help="of this session, packing included")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds - PACKING
    try:
        study = load_study(options.study)
        scratch = tempfile.TemporaryDirectory()
        folder = StudyFolder(Path(scratch.name) / "studies" / study.name)
        folder.path.mkdir(parents=True)
        if options.archive is not None:
            unpack(options.archive, folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with scratch:
        config = on_this_machine(study, Path(scratch.name) / "study.yaml")
        cell_seconds = max(1.0, until - time.monotonic() - STARTING)
        folders = ["--studies", str(folder.path.parent), "--data", str(options.data)]
        process = start(["study", "run", str(config), *folders, "--for", f"{cell_seconds:.0f}s"])
        archive = options.out / f"{study.name}.tar.xz"
        try:
            pack_while_running(process, folder, archive, until)
        except subprocess.TimeoutExpired:
            print("stopped: the time is up, the same command with --archive goes on", flush=True)
        finally:
            kill(process)
        pack(folder, archive)
    return process.returncode if process.returncode > 0 else 0


def unpack(archive: Path, folder: StudyFolder) -> None:
    """Unpack the archive of an earlier session into the study's folder.

    Raises:
        UserError: it holds no cells of this study.
    """
    name = folder.path.name
    if archive.suffix == ".json" and archive.is_file():
        import_study(archive, folder)
        return
    if archive.is_file() and tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            if f"{name}/plan.json" in file.getnames():
                file.extractall(folder.path.parent, filter="data")
                return
    raise UserError(f"{archive} holds no {name}: name a {name}.tar.xz that this script wrote, or a report's study.json")


def on_this_machine(study: StudyConfig, path: Path) -> Path:
    """Write the study's configuration with the number of visible GPUs; returns its path."""
    values = study.model_dump(mode="json", exclude_unset=True)
    count = torch.cuda.device_count()
    if count and study.hardware.device == "cuda":
        values["hardware"]["devices"] = count
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def pack_while_running(process: subprocess.Popen, folder: StudyFolder, archive: Path, until: float) -> None:
    """Wait for the process until `until` (monotonic seconds), and pack after every cell.

    Raises:
        subprocess.TimeoutExpired: it runs longer.
    """
    packed = 0
    while time.monotonic() < until:
        finished = len(list(folder.runs.glob(f"*/{result_file(Path()).name}")))
        if finished > packed:
            try:
                pack(folder, archive)
                packed = finished
            except (OSError, UserError) as error:  # a file changed meanwhile: the next check packs
                print(f"not packed: {error}", flush=True)
        try:
            process.wait(timeout=POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue
    raise subprocess.TimeoutExpired(process.args, 0)


def pack(folder: StudyFolder, archive: Path) -> None:
    """Pack the study's own files and its finished cells."""
    runs = sorted(folder.runs.glob("*"))
    finished = [run for run in runs if result_file(run).is_file()]
    others = [path for path in folder.path.glob("*") if path != folder.runs and path.name != "leases"]
    with write_aside(archive) as aside, tarfile.open(aside, "w:xz", preset=1) as file:  # 1 s instead of 15
        for path in sorted([*others, *finished]):
            name = str(path.relative_to(folder.path.parent))
            file.add(path, name, filter=lambda entry: None if entry.name.endswith(EXCLUDED) else entry)
    size = archive.stat().st_size / 2**20
    print(f"{archive}: {len(finished)} cells done, {len(runs) - len(finished)} begun, {size:.1f} MiB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
