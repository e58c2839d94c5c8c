"""A study that is carried from sitting to sitting: what an archive holds, and what is refused."""

import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "study_on_card.py"
sys.path.insert(0, str(SCRIPT.parent))

from study_on_card import is_of, on_this_machine, pack, pack_while_running  # noqa: E402

from echo_lm.orchestration.studies.config import load_study  # noqa: E402
from echo_lm.orchestration.study import StudyFolder  # noqa: E402


def test_an_archive_has_what_is_done_and_no_weights(tmp_path):
    folder = StudyFolder(tmp_path / "study-pocket")
    for name in (
        "plan.json",
        "leases/done.lease",
        "logs/done.log",
        "runs/done/cell.json",
        "runs/done/checkpoints/step_00000004/model/model.safetensors",
        "runs/done/events.jsonl",
        "runs/begun/events.jsonl",
    ):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("{}")
    pack(folder, tmp_path / "study-pocket.tar.xz")
    assert is_of(load_study("study-pocket"), tmp_path / "study-pocket.tar.xz")
    assert not is_of(load_study("study-code-h100"), tmp_path / "study-pocket.tar.xz")
    with tarfile.open(tmp_path / "study-pocket.tar.xz") as file:
        files = {entry.name for entry in file if entry.isfile()}
    wanted = ("plan.json", "logs/done.log", "runs/done/cell.json", "runs/done/events.jsonl")
    assert files == {f"study-pocket/{name}" for name in wanted}


def test_what_is_done_is_packed_while_others_run(tmp_path):
    folder, archive = StudyFolder(tmp_path / "toy"), tmp_path / "toy.tar.xz"
    (folder.runs / "first").mkdir(parents=True)
    (folder.runs / "first" / "cell.json").write_text("{}")
    endless = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            pack_while_running(endless, folder, archive, time.monotonic() + 1)
    finally:
        endless.kill()
    with tarfile.open(archive) as file:
        assert "toy/runs/first/cell.json" in file.getnames()
    endless.wait()
    pack_while_running(endless, folder, archive, time.monotonic() + 60)  # it has ended: so does the waiting


def test_the_study_is_the_same_on_all_devices(tmp_path, monkeypatch):
    study, small = load_study("study-code-h100"), load_study("study-pocket")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 7)
    assert load_study(on_this_machine(small, tmp_path / "small.yaml")) == small  # its devices are CPU cores
    here = load_study(on_this_machine(study, tmp_path / "study.yaml"))
    assert here.hardware.devices == 7
    assert here == study.model_copy(update={"hardware": study.hardware.model_copy(update={"devices": 7})})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "there is no study 'nope'"),
        (["study-pocket", "--archive", "none.tar.xz"], "none.tar.xz holds no study-pocket: name a study-pocket.tar.xz"),
    ],
)
def test_bad_input_gives_one_line_and_code_2(arguments, message, tmp_path):
    command = [sys.executable, SCRIPT, *arguments, "--data", tmp_path, "--out", tmp_path / "out", "--seconds", "20"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
