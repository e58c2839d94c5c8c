"""A study that is carried from sitting to sitting: what an archive holds, and what is refused."""

import subprocess
import sys
import tarfile
import time

import pytest

from benchmarks.studies.study_on_gpu import main, on_this_machine, pack, pack_while_running, unpack
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.studies.config import load_study
from echo_lm.orchestration.studies.run import StudyFolder


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
    unpack(tmp_path / "study-pocket.tar.xz", StudyFolder(tmp_path / "again" / "study-pocket"))
    assert (tmp_path / "again" / "study-pocket" / "runs" / "done" / "cell.json").is_file()
    with pytest.raises(UserError, match="holds no study-code-h100"):
        unpack(tmp_path / "study-pocket.tar.xz", StudyFolder(tmp_path / "again" / "study-code-h100"))
    with tarfile.open(tmp_path / "study-pocket.tar.xz") as file:
        files = {entry.name for entry in file if entry.isfile()}
    expected = ("plan.json", "logs/done.log", "runs/done/cell.json", "runs/done/events.jsonl")
    assert files == {f"study-pocket/{name}" for name in expected}


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
    assert list(here.sizes) == ["1m", "4m", "10m", "25m", "50m"], "ascending, as they are written"
    assert here == study.model_copy(update={"hardware": study.hardware.model_copy(update={"devices": 7})})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "there is no study 'nope'"),
        (
            ["study-pocket", "--archive", "study.json"],
            "study.json is no study.json of this version (at plan)",
        ),
        (["study-pocket", "--archive", "none.tar.xz"], "none.tar.xz holds no study-pocket: name a study-pocket.tar.xz"),
    ],
)
def test_bad_input_gives_one_line_and_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "study.json").write_text('{"study": "another"}')
    monkeypatch.chdir(tmp_path)
    command = ["study_on_gpu.py", *arguments, "--data", ".", "--out", "out", "--seconds", "20"]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
