"""A folder source says what it took, what it left out and what it could not read; nothing vanishes."""

import gzip
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from echo_lm.data_prep.config import SourceConfig
from echo_lm.data_prep.sources import find_source
from echo_lm.data_prep.sources.files import SourceFiles
from echo_lm.models.common.errors import UserError
from tests.helpers.corpus import faults_of, prepared, texts_of, write_lines

NOBODY = 65534


def found(*paths: Path | str, **changes) -> SourceFiles:
    config = SourceConfig(**{"kind": "text", "name": "mine", "paths": tuple(map(str, paths)), **changes})
    return find_source(config, Path("nowhere"))


def names(root: Path, files: SourceFiles) -> list[str]:
    return [os.path.relpath(file, root) for file in files.files]


def write(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def reasons(files: SourceFiles) -> dict[str, int]:
    return {skipped.reason: skipped.files for skipped in files.skipped}


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Path]:
    """A folder of a user to whom permissions apply, as this user; root may read everything."""
    # What a preparation imports late lies where only root may look.
    prepared(tmp_path, "jsonl", write_lines(tmp_path / "in.jsonl", ["x"]), dataset={"heldout_fraction": 0})
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        if os.geteuid():
            yield Path(name)
            return
        os.chown(name, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path, "data/a.txt", "elsewhere/b.txt", "elsewhere/deep/c.txt")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path / "elsewhere")
    for pattern in (tmp_path / "data", f"{tmp_path}/data/**/*.txt", f"{tmp_path}/data/**"):
        files = found(pattern)
        assert names(tmp_path / "data", files) == ["a.txt", "linked/b.txt", "linked/deep/c.txt"]
        assert reasons(files) == {"a link to a folder above it": 1}


def test_links_to_nothing_and_to_themselves_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "c.txt")
    os.mkfifo(tmp_path / "pipe")
    for pattern in (tmp_path, f"{tmp_path}/*"):
        files = found(pattern)
        assert names(tmp_path, files) == ["a.txt"]
        assert dict(files.unreadable).keys() == {str(tmp_path / "b.txt"), str(tmp_path / "c.txt")}
        assert dict(files.unreadable)[str(tmp_path / "b.txt")] == "a link to nothing"
        assert reasons(files) == {"not a file": 1}


def test_folders_and_files_without_permission_are_named(as_nobody: Path) -> None:
    write(as_nobody, "a.txt", "closed/b.txt", "c.txt")
    (as_nobody / "closed").chmod(0)
    (as_nobody / "c.txt").chmod(0)
    files = found(as_nobody)
    assert dict(files.unreadable) == {str(as_nobody / "closed"): "Permission denied"}
    (as_nobody / "data").mkdir()
    dataset = prepared(as_nobody / "data", "text", as_nobody, dataset={"heldout_fraction": 0}, exclude=("data",))
    assert texts_of(dataset) == ["a.txt"]
    assert {(fault.file, fault.line) for fault in faults_of(dataset)} == {
        (str(as_nobody / name), 0) for name in ("closed", "c.txt")
    }
    assert all("Permission denied" in fault.reason for fault in faults_of(dataset))
    record = dataset.manifest.sources[0]
    assert (record.records, record.quarantined, record.documents) == (3, 2, 1)
    (as_nobody / "closed").chmod(0o700)


def test_half_of_the_files_are_links_to_nothing(tmp_path: Path) -> None:
    write(tmp_path, *(f"in/{i:03}.txt" for i in range(30)))
    for i in range(30):
        (tmp_path / f"in/broken{i}.txt").symlink_to("/nowhere/at/all")
    with pytest.raises(UserError, match=r"30 of 60 records cannot be used.*broken0.txt, line 0: .*link to nothing"):
        prepared(tmp_path, "text", tmp_path / "in", dataset={"max_bad_share": 0.001})
    record = prepared(tmp_path, "text", tmp_path / "in", dataset={"name": "lenient"}).manifest.sources[0]
    assert (record.documents, record.quarantined) == (30, 30)


def test_hidden_and_tool_files_are_left_out_and_said(tmp_path: Path) -> None:
    root, tmp_path = tmp_path, tmp_path / "in"
    write(tmp_path, "a.txt", "b/c.txt")
    write(tmp_path, ".git/config", ".DS_Store", "b/._c.txt", ".ipynb_checkpoints/a.txt", "__MACOSX/a.txt", "a.txt~")
    files = found(tmp_path)
    assert names(tmp_path, files) == ["a.txt", "b/c.txt"]
    assert reasons(files) == {".*": 4, "__MACOSX": 1, "*~": 1}
    assert found(tmp_path, exclude=()).files != files.files
    # What is spelled out is taken.
    assert names(tmp_path, found(tmp_path / ".git/config")) == [".git/config"]
    assert names(tmp_path, found(f"{tmp_path}/.git/c*")) == [".git/config"]
    record = prepared(root, "text", tmp_path, dataset={"heldout_fraction": 0}).manifest.sources[0]
    assert {skipped.reason: skipped.files for skipped in record.skipped} == {".*": 4, "__MACOSX": 1, "*~": 1}


def test_include_and_exclude_take_names_and_relative_paths(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.md", "drafts/c.txt", "deep/drafts.txt", "deep/e.txt")
    assert names(tmp_path, found(tmp_path, include=("*.txt",), exclude=("drafts", "deep/e*"))) == [
        "a.txt",
        "deep/drafts.txt",
    ]
    assert reasons(found(tmp_path, include=("*.txt",), exclude=("drafts",))) == {"drafts": 1, "not in include": 1}
    with pytest.raises(UserError, match=r"no file matches .* \(5 are left out by include and exclude\)"):
        found(tmp_path, include=("*.parquet",))


def test_a_pattern_that_matches_folders_says_that_it_does_not_enter_them(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b/c.txt")
    files = found(f"{tmp_path}/*")
    assert names(tmp_path, files) == ["a.txt"]
    assert reasons(files) == {"a folder that the pattern does not enter": 1}


def test_cards_beside_tables_are_no_documents(tmp_path: Path) -> None:
    write_lines(tmp_path / "data/a.jsonl", ["x"])
    write(tmp_path, "README.md", "LICENSE", "data/dataset_info.json")
    assert names(tmp_path, found(tmp_path, kind="jsonl")) == ["data/a.jsonl"]
    assert len(found(tmp_path).files) == 4, "of a text source they are"


def test_a_cache_of_links_to_blobs_without_names(tmp_path: Path) -> None:
    """The layout of every cache of the hub: what a file is tells its content, not its name."""
    (tmp_path / "blobs").mkdir()
    lines = write_lines(tmp_path / "plain.jsonl", [f"text {i}" for i in range(50)]).read_bytes()
    (tmp_path / "blobs/abc").write_bytes(gzip.compress(lines))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/a.jsonl.gz").symlink_to("../blobs/abc")
    dataset = prepared(tmp_path, "jsonl", tmp_path / "snapshot")
    assert len(texts_of(dataset)) == 50


def test_names_that_are_not_utf8_or_not_one_line(tmp_path: Path) -> None:
    for name in (b"\xff.jsonl", b"two\nlines.jsonl"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name))
        write_lines(path, [f"{name!r} {i}" for i in range(20)])
        with open(path, "a") as file:
            file.write("{bad\n")
    dataset = prepared(tmp_path, "jsonl", tmp_path / "in")
    assert len(texts_of(dataset)) == 40
    assert sorted(str(fault).split("/in/")[1][:12] for fault in faults_of(dataset)) == [
        "\\udcff.jsonl",
        "two\\nlines.j",
    ]
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, "jsonl", tmp_path / "in", dataset={"max_bad_share": 0, "name": "strict"})
    assert str(caught.value).isprintable()


def test_a_folder_that_may_not_be_entered_is_refused_in_one_line(as_nobody: Path) -> None:
    write(as_nobody, "closed/in/a.txt")
    (as_nobody / "closed").chmod(0)
    for pattern in ("closed/in", "closed/in/a.txt", "closed/in/*.txt"):
        with pytest.raises(UserError, match="no file matches|cannot be read"):
            found(as_nobody / pattern)
    (as_nobody / "closed").chmod(0o700)
