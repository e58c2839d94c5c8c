"""The recipe for FineWeb-Edu against a mirror on disk: parquet with the same columns, read through `datasets`."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.data_prep.sources import FetchError, find_source
from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.config import load_config
from tests.helpers.corpus import tree

CARD = """---
license: odc-by
configs:
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*.parquet
---
"""
ROWS, GROUP = 600, 50


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A folder laid out as the dataset, of two files with six row groups each; and its rows."""
    folder = tmp_path_factory.mktemp("mirror")
    generator = random.Random(5)
    rows = []
    for i in range(ROWS):
        text = " ".join("".join(generator.choices("abcdefghij", k=5)) for _ in range(generator.randint(45, 80)))
        score = generator.uniform(2.5, 5)
        rows.append(
            {
                "text": text,
                "id": f"<urn:uuid:{i}>",
                "dump": "CC-MAIN-2013-20",
                "url": f"https://example.org/{i}",
                "file_path": "s3://commoncrawl/x.warc.gz",
                "language": generator.choice(["en", "en", "en", "de"]),
                "language_score": generator.uniform(0.65, 1),
                "token_count": len(text) // 4,
                "score": score,
                "int_score": round(score),
            }
        )
    (folder / "README.md").write_text(CARD)
    (folder / "sample" / "10BT").mkdir(parents=True)
    for i in range(2):
        part = pa.Table.from_pylist(rows[i * ROWS // 2 : (i + 1) * ROWS // 2])
        pq.write_table(part, folder / f"sample/10BT/00{i}_00000.parquet", row_group_size=GROUP)
    return folder, rows


def recipe_data(mirror: Path, **source_changes) -> DatasetConfig:
    """The recipe's own data section, pointed at the mirror and made small."""
    data = load_config("fineweb-edu").data
    source = data.sources[0].model_copy(update={"dataset": str(mirror), **source_changes})
    changes = {"sources": (source,), "tokenizer": TokenizerConfig(vocab_size=400), "heldout_fraction": 0.1}
    return DatasetConfig.model_validate({**data.model_dump(), **changes})


def backwards(function, units):
    return [function(unit) for unit in reversed(units)]


def test_the_whole_mirror_with_the_recipes_filters(mirror: tuple[Path, list[dict]], tmp_path: Path) -> None:
    folder, rows = mirror
    dataset = Dataset.open(prepare(recipe_data(folder), tmp_path), verify=True)
    expected = [row["text"] for row in rows if row["language"] == "en" and row["int_score"] >= 3]
    assert 200 < len(expected) < 500
    tokenizer = dataset.tokenizer()
    rows = []
    for split in ("train", "heldout"):
        stream = dataset.split(split)
        rows += [tokenizer.decode(stream.document(i)[:-1].tolist()) for i in range(stream.num_documents)]
    assert sorted(rows) == sorted(expected)
    record = dataset.manifest.sources[0]
    assert (record.records, record.filtered) == (ROWS, ROWS - len(expected))
    assert record.licence == "odc-by"
    assert "sample-10BT" in record.origin


def test_a_limit_of_tokens_reads_no_more_than_it_needs(mirror: tuple[Path, list[dict]], tmp_path: Path) -> None:
    config = recipe_data(mirror[0], limit_tokens=12_000)
    first = prepare(config, tmp_path / "a")
    record = Dataset.open(first, verify=True).manifest.sources[0]
    assert 12_000 <= record.tokens < 12_500
    assert record.records < ROWS
    assert tree(prepare(config, tmp_path / "b", map_units=backwards)) == tree(first)


def test_a_limit_of_documents_counts_those_that_pass_the_filters(mirror: tuple, tmp_path: Path) -> None:
    config = recipe_data(mirror[0], limit_documents=70, limit_tokens=None)
    first = prepare(config, tmp_path / "a")
    record = Dataset.open(first).manifest.sources[0]
    assert record.documents == 70
    assert record.records == 2 * GROUP
    assert tree(prepare(config, tmp_path / "b", map_units=backwards)) == tree(first)


def test_mistakes_are_one_line(mirror: tuple[Path, list[dict]], tmp_path: Path, monkeypatch) -> None:
    def source(**fields) -> SourceConfig:
        return SourceConfig(**{"kind": "huggingface", "dataset": str(mirror[0]), "subset": "sample-10BT", **fields})

    for fields, part in (({"subset": "sample-9BT"}, "sample-9BT"), ({"split": "test"}, "test")):
        with pytest.raises(UserError, match=part) as caught:
            find_source(source(**fields), tmp_path)
        assert "\n" not in str(caught.value)
        assert "correct subset or split" in str(caught.value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="check its name and the network"):
        find_source(source(dataset="someone/nothing", revision="0" * 40), tmp_path)
