"""One corpus and one dataset made of it, for the whole session."""

from pathlib import Path

import pytest

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.prepare import prepare
from tests.helpers.corpus import jsonl_config, write_documents


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "words.jsonl"
    write_documents(path, 300, seed=1)
    return path


@pytest.fixture(scope="session")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(prepare(jsonl_config(corpus), tmp_path_factory.mktemp("data")))
