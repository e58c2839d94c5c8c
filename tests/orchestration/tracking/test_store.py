"""The sqlite file of the record: made by several at once, in folders of any name, moved, copied and replaced."""

import shlex
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from echo_lm.models.common.files import write_json
from echo_lm.orchestration.tracking.client import default_database, default_tracking_uri
from echo_lm.orchestration.tracking.mlflow import track
from echo_lm.orchestration.tracking.store import sqlite_file, sqlite_uri
from tests.helpers.commands import Commands
from tests.helpers.tracked_runs import all_runs, client, history


@pytest.fixture(scope="module")
def commands():
    with Commands() as commands:
        yield commands


def artifacts(folder: Path, run: str) -> Path:
    """Where MLflow has the run's configuration."""
    return Path(client(folder).download_artifacts(run, "config.yaml"))


def test_a_fresh_file_is_made_by_four_processes_at_once(run_folder, commands):
    """And one that a process left half made under its temporary name is no hindrance."""
    database = default_database(run_folder)
    database.unlink()
    database.with_name(".mlflow.db.0.new").write_text("torn")
    runs = [run_folder, *(run_folder.with_name(f"small-{number}") for number in range(3))]
    for copy in runs[1:]:
        shutil.copytree(run_folder, copy)
        write_json(copy / "environment.json", {"run_id": f"id of {copy.name}"})
    done = commands.run(*(["track", run] for run in runs))
    assert [process.returncode for process in done] == [0, 0, 0, 0], [process.stderr for process in done]
    assert sorted(run.info.run_name for run in all_runs(run_folder)) == ["small", "small-0", "small-1", "small-2"]
    assert [path.name for path in database.parent.glob(".mlflow.db.*")] == [".mlflow.db.lock"]


@pytest.mark.parametrize("name", ["100% of 20%20b", "what?", "a#b", 'it\'s a "run" & more'])
def test_a_path_with_any_characters(run_folder, name):
    tree = run_folder.parent.parent / name / "tree"
    tree.mkdir(parents=True)
    for moved in ("runs", "mlflow.db"):
        shutil.move(run_folder.parent.parent / moved, tree / moved)
    if "?" in name:  # which takes seconds, so once
        (tree / "mlflow.db").unlink()
    run = track(tree / "runs" / "small")
    (found,) = all_runs(tree / "runs" / "small")
    assert found.info.run_id == run
    assert (tree / "mlflow-artifacts" / run / "artifacts" / "config.yaml").is_file()
    assert artifacts(tree / "runs" / "small", run).read_text() == (tree / "runs" / "small" / "config.yaml").read_text()
    assert [path.name for path in tree.parent.parent.iterdir()] == [name], "no folder besides"


def test_a_uri_names_its_file():
    for path in ("/a b/mlflow.db", "/a%20b/mlflow.db", "/a?b/mlflow.db", "/a#b/mlflow.db"):
        assert sqlite_file(sqlite_uri(Path(path))) == Path(path)
    assert sqlite_uri(Path("/plain/mlflow.db")) == "sqlite:////plain/mlflow.db"
    assert sqlite_file("http://host:5000") is None
    assert sqlite_file("sqlite:///:memory:") is None


@pytest.mark.parametrize("action", [shutil.move, shutil.copytree])
def test_the_artifacts_of_a_moved_or_copied_tree_lie_in_it(run_folder, tmp_path_factory, commands, action):
    old = run_folder.parent.parent
    run = track(run_folder)
    new = tmp_path_factory.mktemp("elsewhere") / "with space"
    action(old, new)
    moved = new / "runs" / "small"
    (moved / "report.md").write_text("new")
    (done,) = commands.run(["track", moved])
    assert done.returncode == 0, done.stderr
    found = {record.info.run_id for record in all_runs(moved)}
    again = (found - {run} or found).pop()  # a copy is a run of its own
    record = client(moved).get_run(again)
    assert record.info.artifact_uri.startswith(new.as_uri())
    assert (new / "mlflow-artifacts" / again / "artifacts" / "report.md").is_file()
    shutil.rmtree(old, ignore_errors=True)
    assert artifacts(moved, again).is_file()
    assert artifacts(moved, run).is_file(), "what was sent before the move is found"
    assert len(history(moved, again, "train/loss")) == 20
    assert not old.exists()


def test_a_file_that_was_moved_alone_keeps_its_artifacts(run_folder, tmp_path_factory, commands):
    run = track(run_folder)
    database = tmp_path_factory.mktemp("alone") / "mlflow.db"
    shutil.move(default_database(run_folder), database)
    (run_folder / "report.md").write_text("new")
    # In a process of its own: MLflow remembers where a run's artifacts lie.
    (done,) = commands.run(["track", run_folder, "--tracking-uri", sqlite_uri(database)])
    assert done.returncode == 0, done.stderr
    assert not (database.parent / "mlflow-artifacts").exists()
    assert (run_folder.parent.parent / "mlflow-artifacts" / run / "artifacts" / "report.md").is_file()


def test_a_file_that_was_replaced_while_this_process_lives_is_written(run_folder, empty_store):
    track(run_folder)
    database = default_database(run_folder)
    database.unlink()
    shutil.copy(empty_store, database)
    run = track(run_folder)
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT run_uuid FROM runs WHERE name = 'small'").fetchall() == [(run,)]


def test_track_says_what_is_wrong_in_one_line_and_fails(run_folder, commands):
    default_database(run_folder).write_text("no database")
    (done,) = commands.run(["track", run_folder])
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "is damaged, or no database" in done.stderr


def test_the_line_that_opens_mlflow_can_be_copied(run_folder):
    from echo_lm.orchestration.launch.run import ui_command

    uri = default_tracking_uri(Path("/a b/it's (100%)/runs/small"))
    assert shlex.split(ui_command(uri))[-1] == uri
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {ui_command(uri)}"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-1] == uri
