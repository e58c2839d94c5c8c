"""A small real dataset, a small real model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.models import EchoLM, build_model, preset, save_pretrained

WORDS = ["echo", "koopman", "naïve", "state", "記憶", "filter", "ridge", "key", "value", "token"]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Dataset:
    """200 documents of 5 to 60 words, one in five held out."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    (root / "texts").mkdir()
    for number in range(200):
        words = generator.choice(WORDS, size=generator.integers(5, 60), p=np.arange(1, 11) / 55)
        (root / "texts" / f"{number}.txt").write_text(f"{number}: {' '.join(words)}", encoding="utf-8")
    config = DatasetConfig(
        name="words",
        sources=(SourceConfig(kind="text", paths=(str(root / "texts"),)),),
        tokenizer=TokenizerConfig(vocab_size=420),
        heldout_fraction=0.2,
        unit_bytes=20_000,
    )
    return Dataset.open(prepare(config, root))


def random_model(dataset: Dataset, seed: int, **overrides) -> EchoLM:
    """A small Echo whose every weight is random, those that start at zero included."""
    config = preset("echo-1m", vocab_size=dataset.manifest.vocab_size, **overrides)
    model = build_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


@pytest.fixture(scope="session")
def model_folder(dataset, tmp_path_factory) -> Path:
    """A checkpoint's `model/`."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_pretrained(random_model(dataset, seed=1), folder)
    (folder / "tokenizer.json").write_bytes((dataset.folder / "tokenizer.json").read_bytes())
    return folder
