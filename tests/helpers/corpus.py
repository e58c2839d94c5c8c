"""A small corpus with everything that text can do to a pipeline, and the config that cuts it up."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.formats.records import Fault
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.preparing.prepare import prepare

AWKWARD = [
    "e\u0301te\u0301 \u200b zero width",
    "<|endoftext|> and <|r5|> as text",
    "日本語のテキスト",
    "\n leading",
    "x",
]


def write_documents(path: Path, count: int, seed: int, awkward: list[str] = AWKWARD) -> list[str]:
    """Write `count` documents of random words as JSON lines, no two the same; returns their text."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(1, 7))) for _ in range(60)]
    documents = [" ".join(generator.choices(words, k=generator.randint(5, 60))) for _ in range(count - len(awkward))]
    documents += awkward
    assert len(set(documents)) == count
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return documents


def jsonl_config(path: Path, **changes) -> DatasetConfig:
    """A config of one jsonl source, cut into several units and shards."""
    fields = {
        "name": "corpus",
        "sources": (SourceConfig(kind="jsonl", name="words", paths=(str(path),)),),
        "tokenizer": TokenizerConfig(vocab_size=450),
        "heldout_fraction": 0.1,
        "unit_bytes": 8_000,
        "shard_tokens": 1_500,
    }
    return DatasetConfig(**{**fields, **changes})


def prepared(root: Path, kind: str, *paths: Path | str, **changes) -> Dataset:
    """The dataset below `root` of one source "mine", which may be bad altogether; `dataset={...}` changes its config.

    Kind "huggingface" takes a folder like a local kind.
    """
    dataset_changes = {"max_bad_share": 1.0, "heldout_fraction": 0.2, "overlap": None, **changes.pop("dataset", {})}
    places = {"dataset": str(paths[0])} if kind == "huggingface" else {"paths": tuple(map(str, paths))}
    source = SourceConfig(kind=kind, name="mine", **places, **changes)
    return Dataset.open(prepare(jsonl_config(root, sources=(source,), **dataset_changes), root / "data"), verify=True)


def texts_of(dataset: Dataset) -> list[str]:
    """The documents of both splits, decoded, sorted."""
    tokenizer = dataset.tokenizer()
    streams = [dataset.split(split) for split in ("train", "heldout")]
    return sorted(
        tokenizer.decode(stream.document(i)[:-1].tolist(), skip_special_tokens=False)
        for stream in streams
        for i in range(stream.num_documents)
    )


def faults_of(dataset: Dataset) -> list[Fault]:
    """The records that were set aside."""
    path = dataset.folder / "quarantine.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [Fault.model_validate(json.loads(line)) for line in lines]


def write_lines(path: Path, texts: Iterable[str]) -> Path:
    """Write JSON lines with a text each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
