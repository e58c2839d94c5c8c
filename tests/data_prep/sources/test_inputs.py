"""What a dataset was made of: files that change while it is prepared, or afterwards, are noticed."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.preparing.cleaning import clean_unit
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import sha256_file
from tests.helpers.corpus import jsonl_config, write_lines

TEXTS = [f"plain words here {i}" for i in range(300)]


@pytest.fixture
def config(tmp_path: Path) -> DatasetConfig:
    for name in "ab":
        write_lines(tmp_path / f"in/{name}.jsonl", [f"{name} {text}" for text in TEXTS])
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "words": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = SourceConfig(kind="jsonl", name="mine", paths=(str(tmp_path / "in"),))
    load = TokenizerConfig(load=str(tmp_path / "tokenizer.json"))
    return jsonl_config(tmp_path, sources=(source,), tokenizer=load)


def rewrite(path: Path) -> None:
    """Another content of the same size and time."""
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"plain", b"other"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file under the name, older than the first."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    rewrite(other)
    os.replace(other, path)


@pytest.mark.parametrize("change", [rewrite, replace, Path.unlink])
@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_file_that_changes_between_plan_and_reading(config: DatasetConfig, tmp_path: Path, change, moment) -> None:
    path = tmp_path / "in/b.jsonl"

    def map_units(function, units):
        for i, unit in enumerate(units):
            if function is clean_unit and i == (0 if moment == "before" else len(units) // 2):
                change(path)
            yield function(unit)

    with pytest.raises(UserError, match=rf"{path} changed while .* was prepared: delete that folder"):
        prepare(config, tmp_path / "data", map_units=map_units)
    assert not (tmp_path / "data/corpus/manifest.json").exists()


def test_every_input_file_is_recorded_with_its_hash(config: DatasetConfig, tmp_path: Path) -> None:
    folder = prepare(config, tmp_path / "data")
    rows = [json.loads(line) for line in (folder / "inputs.jsonl").read_text().splitlines()]
    expected = [("mine", "in/a.jsonl"), ("mine", "in/b.jsonl"), (None, "tokenizer.json")]
    assert [(row["source"], row["path"]) for row in rows] == [(name, str(tmp_path / file)) for name, file in expected]
    assert all(row["sha256"] == sha256_file(Path(row["path"])) for row in rows)


@pytest.mark.parametrize("change", [rewrite, replace])
@pytest.mark.parametrize("name", ["in/a.jsonl", "tokenizer.json"])
def test_a_complete_dataset_whose_input_changed(config: DatasetConfig, tmp_path: Path, name: str, change) -> None:
    folder = prepare(config, tmp_path / "data")
    assert prepare(config, tmp_path / "data") == folder
    if name == "tokenizer.json":
        (tmp_path / name).write_text((tmp_path / name).read_text().replace("words", "other"))
    else:
        change(tmp_path / name)
    with pytest.raises(UserError, match=rf"{tmp_path / name} is not what it was since {folder} was prepared"):
        prepare(config, tmp_path / "data")


def test_a_file_that_came_to_a_folder_later(config: DatasetConfig, tmp_path: Path) -> None:
    prepare(config, tmp_path / "data")
    write_lines(tmp_path / "in/c.jsonl", ["more"])
    with pytest.raises(UserError, match=r"source mine has 1 more files, the first: .*c.jsonl since"):
        prepare(config, tmp_path / "data")


def test_a_dataset_is_used_without_its_sources(config: DatasetConfig, tmp_path: Path) -> None:
    folder = prepare(config, tmp_path / "data")
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "tokenizer.json").unlink()
    assert prepare(config, tmp_path / "data") == folder
    (folder / "inputs.jsonl").unlink()  # as in datasets of earlier versions
    assert prepare(config, tmp_path / "data") == folder


def test_touching_a_file_is_no_change(config: DatasetConfig, tmp_path: Path) -> None:
    folder = prepare(config, tmp_path / "data")
    os.utime(tmp_path / "in/a.jsonl")
    assert prepare(config, tmp_path / "data") == folder
