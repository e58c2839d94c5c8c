"""The archive of a study: what it holds, how a study goes on from it, and what is refused."""

import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.studies.archive import pack, unpack
from echo_lm.orchestration.studies.folder import StudyFolder


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
    again = StudyFolder(tmp_path / "again" / "study-pocket")
    unpack(tmp_path / "study-pocket.tar.xz", again)
    assert (again.runs / "done" / "cell.json").is_file()
    with tarfile.open(tmp_path / "study-pocket.tar.xz") as file:
        files = {entry.name for entry in file if entry.isfile()}
    expected = ("plan.json", "logs/done.log", "runs/done/cell.json", "runs/done/events.jsonl")
    assert files == {f"study-pocket/{name}" for name in expected}
    with pytest.raises(UserError, match="holds no study-code-h100"):
        unpack(tmp_path / "study-pocket.tar.xz", StudyFolder(tmp_path / "again" / "study-code-h100"))
    with pytest.raises(UserError, match="holds a study already"):
        unpack(tmp_path / "study-pocket.tar.xz", again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "study.json"], "study.json is no study.json of this version (at plan)"),
        (["--from", "none.tar.xz"], "none.tar.xz holds no study-pocket: name a study-pocket.tar.xz"),
        (["--archive", "out/study.zip"], "--archive out/study.zip: name a file that ends in .tar.xz"),
    ],
)
def test_a_wrong_archive_gives_one_line_before_anything_runs(arguments, message, tmp_path, monkeypatch):
    (tmp_path / "study.json").write_text('{"study": "another"}')
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["study", "run", "study-pocket", *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert {path.name for path in Path().iterdir()} == {"study.json"}
