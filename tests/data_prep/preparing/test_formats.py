"""The same documents come out of every format; filters and normalisation; tokenizers that exist; what verify sees."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.loading.verify import verify
from echo_lm.data_prep.preparing.manifest import write_manifest
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.data_prep.preparing.tokenizer import RESERVED, adopt_tokenizer, reserved_start
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import sha256_file
from tests.helpers.corpus import jsonl_config

TEXTS = [f"document {i}: " + "text " * (i % 9) for i in range(120)]


def texts_of(folder: Path) -> set[str]:
    dataset = Dataset.open(folder, verify=True)
    tokenizer = dataset.tokenizer()
    streams = [dataset.split(split) for split in ("train", "heldout")]
    return {tokenizer.decode(s.document(i)[:-1].tolist()) for s in streams for i in range(s.num_documents)}


def prepared(root: Path, kind: str, paths: str, **changes) -> Path:
    source = SourceConfig(kind=kind, name="mine", paths=(paths,), **changes)
    return prepare(jsonl_config(root, sources=(source,), unit_bytes=1_000), root / "data")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_files_plain_and_compressed(tmp_path: Path, kind: str, suffix: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
    if kind == "text":
        for i, text in enumerate(TEXTS):
            (tmp_path / f"{i:03}.in{suffix}").write_bytes(pack(text.encode()))
    else:  # two frames, as compressors that append leave them
        (tmp_path / f"all.in{suffix}").write_bytes(pack(b"".join(lines[:50])) + pack(b"".join(lines[50:])))
    assert texts_of(prepared(tmp_path, kind, f"{tmp_path}/*.in{suffix}")) == set(TEXTS)


def test_parquet_by_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"other": list(range(120)), "body": TEXTS}), tmp_path / "in.parquet", row_group_size=16)
    folder = prepared(tmp_path, "parquet", f"{tmp_path}/*.parquet", text_column="body")
    assert texts_of(folder) == set(TEXTS)
    assert len({shard.file.split("-")[1] for shard in Dataset.open(folder).manifest.shards}) > 1, "several units"


def test_filters_and_normalisation(tmp_path: Path) -> None:
    rows = [{"text": f"ﬁne {i} " + "x" * i, "language": "en" if i % 2 else "de", "score": i / 10} for i in range(80)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = prepared(
        tmp_path,
        "jsonl",
        f"{tmp_path}/in.jsonl",
        keep={"language": ("en",)},
        at_least={"score": 2.5},
        min_characters=20,
        max_characters=60,
        normalisation="nfkc",
    )
    expected = {row["text"].replace("ﬁ", "fi") for row in rows if row["language"] == "en" and row["score"] >= 2.5}
    expected = {text for text in expected if 20 <= len(text) <= 60}
    assert 10 < len(expected) < 30
    assert texts_of(folder) == expected
    assert Dataset.open(folder).manifest.sources[0].filtered == 80 - len(expected)


def test_a_tokenizer_that_exists_is_taken_with_our_special_tokens(tmp_path: Path, dataset: Dataset) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    plain.enable_truncation(5)
    plain.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = jsonl_config(
        tmp_path / "in.jsonl", tokenizer=TokenizerConfig(load=str(tmp_path), special_tokens=("<|user|>",))
    )
    folder = prepare(config, tmp_path / "data")
    assert texts_of(folder) == set(TEXTS), "truncation is off"
    tokenizer = Dataset.open(folder).tokenizer()
    size = plain.get_vocab_size()
    assert reserved_start(tokenizer) == size + 2
    assert tokenizer.get_vocab_size() == size + 2 + len(RESERVED) + 1
    assert tokenizer.token_to_id("<|user|>") == tokenizer.get_vocab_size() - 1


def test_a_tokenizer_that_does_not_exist(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "tokenizer.json").write_text("{}")
    for name in (str(tmp_path), "someone/nothing-here"):
        with pytest.raises(UserError, match="cannot be loaded") as caught:
            adopt_tokenizer(name)
        assert "\n" not in str(caught.value)


def test_several_limits_and_sources_at_once(tmp_path: Path) -> None:
    for name in "ab":
        lines = [json.dumps({"text": f"{name} {text}"}) + "\n" for text in TEXTS]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    sources = [
        SourceConfig(kind="jsonl", name="a", paths=(f"{tmp_path}/a.jsonl",), limit_documents=33),
        SourceConfig(kind="jsonl", name="b", paths=(f"{tmp_path}/b.jsonl",), limit_tokens=400),
    ]
    config = DatasetConfig(
        name="two", sources=sources, tokenizer=TokenizerConfig(vocab_size=400), heldout_fraction=0.2, unit_bytes=500
    )
    manifest = Dataset.open(prepare(config, tmp_path), verify=True).manifest
    assert manifest.sources[0].documents == 33
    assert 400 <= manifest.sources[1].tokens < 430


@pytest.mark.parametrize(
    ("damage", "message"),
    [("id", "ids beyond the vocabulary"), ("border", "documents do not end"), ("copy", "a document that is held out")],
)
def test_verify_looks_into_shards_whose_hashes_are_right(
    corpus: Path, tmp_path: Path, damage: str, message: str
) -> None:
    folder = prepare(jsonl_config(corpus), tmp_path)
    manifest = verify(folder)
    train, heldout = (manifest.of_split(split)[0] for split in ("train", "heldout"))
    tokens = np.fromfile(folder / train.file, dtype="<u2")
    offsets = np.load(folder / train.documents_file)
    if damage == "id":
        tokens[0] = manifest.vocab_size
    elif damage == "border":
        tokens[offsets[1] - 1] = 200
    else:
        other = np.fromfile(folder / heldout.file, dtype="<u2")[: np.load(folder / heldout.documents_file)[1]]
        tokens = np.append(tokens, other)
        np.save(folder / train.documents_file, np.append(offsets, len(tokens)))
    tokens.tofile(folder / train.file)
    changed = train.model_copy(
        update={
            "tokens": len(tokens),
            "documents": len(np.load(folder / train.documents_file)) - 1,
            "sha256": sha256_file(folder / train.file),
            "documents_sha256": sha256_file(folder / train.documents_file),
        }
    )
    shards = tuple(changed if shard == train else shard for shard in manifest.shards)
    write_manifest(folder, manifest.model_copy(update={"shards": shards}))
    with pytest.raises(UserError, match=message):
        verify(folder)
