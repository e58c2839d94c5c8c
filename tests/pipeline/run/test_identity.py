"""The id of a run stays with its folder when that is moved or renamed; a copy gets another one."""

import errno
import shutil

import pytest

from echo_lm.models.common.files import read_json, write_json
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.identity import run_id


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "exp"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: exp\n")
    return folder


def test_a_folder_keeps_its_id_under_another_name_and_at_another_place(run, tmp_path):
    first = run_id(run, new=True)
    assert run_id(run) == first
    renamed = run.rename(run.parent / "exp-monday")
    assert run_id(renamed) == first
    (tmp_path / "elsewhere").mkdir()
    moved = renamed.parent.rename(tmp_path / "elsewhere" / "runs") / "exp-monday"
    assert run_id(moved) == first
    assert read_json(moved / "identity.json")["path"] == str(moved)


def test_a_folder_that_was_moved_to_another_disk_keeps_its_id(run, tmp_path):
    """As `mv` does it there: a copy, then the original is deleted."""
    first = run_id(run, new=True)
    other = tmp_path / "disk" / "exp"
    shutil.copytree(run, other)
    shutil.rmtree(run)
    assert run_id(other) == first


def test_a_backup_at_the_same_place_keeps_its_id(run, tmp_path):
    first = run_id(run, new=True)
    shutil.copytree(run, tmp_path / "backup")
    shutil.rmtree(run)
    shutil.copytree(tmp_path / "backup", run)
    assert run_id(run) == first


def test_a_copy_gets_an_id_of_its_own_and_keeps_it(run, tmp_path):
    first = run_id(run, new=True)
    branch = run.parent / "exp-branch"
    shutil.copytree(run, branch)
    second = run_id(branch)
    assert second != first
    assert run_id(branch) == second
    assert read_json(branch / "identity.json")["copied_from"] == first
    assert run_id(run) == first
    # Also where the original has another name by now, and from another folder.
    renamed = run.rename(run.parent / "renamed")
    third = shutil.copytree(renamed, tmp_path / "far" / "renamed")
    assert run_id(third) not in (first, second)
    assert run_id(renamed) == first
    # A copy of the copy, which was never asked before its original was renamed.
    fourth = shutil.copytree(branch, run.parent / "fourth")
    branch = branch.rename(run.parent / "exp-branch-2")
    assert run_id(fourth) not in (first, second)
    assert run_id(branch) == second


@pytest.mark.parametrize("asked", ["exp", "branch"])
def test_a_tree_from_another_machine_may_be_copied_from_before_anybody_looks(asked, run, tmp_path):
    """No folder lies where its note says: the one with the name of the original is it, else the first that is asked."""
    first = run_id(run, new=True)
    runs = shutil.copytree(run.parent, tmp_path / "tree" / "runs")
    run.parent.rename(tmp_path / "other machine")  # not deleted: the next folder would get its inode
    branch = shutil.copytree(runs / "exp", runs / "branch")
    if asked == "branch":
        assert run_id(branch) != first
    assert run_id(runs / "exp") == first
    assert run_id(branch) != first
    # Neither has its name any more.
    other = shutil.copytree(tmp_path / "tree", tmp_path / "other") / "runs"
    (tmp_path / "tree").rename(tmp_path / "second machine")
    (other / "branch").rename(tmp_path / "branch")
    one = (other / "exp").rename(other / "one")
    two = shutil.copytree(one, other / "two")
    ids = [run_id(one), run_id(two)]
    assert ids[0] == first
    assert ids[1] != first


def test_runs_of_earlier_versions_keep_their_id_and_their_copies_get_another(run):
    """They have it in `environment.json`, and no note of their place."""
    write_json(run / "environment.json", {"run_id": "abc"})
    copy = shutil.copytree(run, run.parent / "copy")
    assert run_id(copy) != "abc"
    assert run_id(run) == "abc"
    moved = run.rename(run.parent / "moved")
    assert run_id(moved) == "abc"


def test_a_folder_without_an_id_has_its_name(run):
    """A run whose `environment.json` was lost: MLflow has it under the folder's name."""
    assert run_id(run) == "exp"


def test_in_a_folder_that_cannot_be_written_the_id_of_a_copy_is_the_same_each_time(run, monkeypatch):
    first = run_id(run, new=True)
    copy = shutil.copytree(run, run.parent / "copy")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("echo_lm.models.common.files.os.fsync", full)
    assert run_id(copy) == run_id(copy) != first


def test_the_dataset_is_found_beside_the_run_and_where_it_was(run, tmp_path):
    """A tree that was moved as a whole has its own; a run alone has the one that it left behind."""
    data = tmp_path / "data" / "text"
    data.mkdir(parents=True)
    write_json(run / "data.json", {"folder": "../../data/text", "absolute": str(data)})
    assert RunFolder(run).data_folder() == data
    alone = shutil.copytree(run, tmp_path / "a" / "b" / "c" / "exp")
    assert RunFolder(alone).data_folder() == data
    tree = shutil.copytree(tmp_path / "runs", tmp_path / "tree" / "runs")
    shutil.copytree(tmp_path / "data", tmp_path / "tree" / "data")
    assert RunFolder(tree / "exp").data_folder() == tmp_path / "tree" / "data" / "text"
