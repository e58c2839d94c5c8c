"""CPU time of the whole preparation on one core, beside the `tokenizers` library on the same text: for a machine that is not quiet.

    python -m benchmarks.data.one_core OUT.json [--rounds 4]

`tokenization.py` measures by the clock and refuses a machine on which others work; this one takes CPU time of this process
alone, so that two revisions can be compared, run in turns. The text is that of this interpreter's library, 30 MB, in one file of
JSON lines; the preparation reads, cleans, checks overlaps, tokenizes with a loaded BPE of 8,192 ids and writes shards, from the
first slice to the manifest.
"""

import argparse
import json
import os
import platform
import sysconfig
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.preparing.manifest import read_manifest
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.data_prep.preparing.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

TEXT_CHARACTERS = 30_000_000
VOCABULARY = 8192


def library_texts() -> list[str]:
    """The files of this interpreter's library, installed packages excluded."""
    texts, total = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or total > TEXT_CHARACTERS:
            continue
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        total += len(texts[-1])
    return texts


def encode(tokenizer: Tokenizer, texts: list[str], *, fast: bool) -> float:
    """Tokens a CPU second of the library alone."""
    started, tokens = time.process_time(), 0
    for text in texts:
        if fast:
            tokens += len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        else:
            tokens += len(tokenizer.encode(text, add_special_tokens=False).ids)
    return tokens / (time.process_time() - started)


def whole(folder: Path) -> float:
    """Tokens a CPU second of the preparation, all in this process."""
    config = DatasetConfig(
        name="benchmark",
        sources=(SourceConfig(kind="jsonl", paths=(str(folder / "text.jsonl"),)),),
        tokenizer=TokenizerConfig(load=str(folder)),
        exact_duplicates="keep",
        unit_bytes=8_000_000,
    )
    started: list[float] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "clean" and not started:
            started.append(time.process_time())

    with tempfile.TemporaryDirectory() as root:
        manifest = read_manifest(prepare(config, Path(root), on_progress=progress))
        return sum(shard.tokens for shard in manifest.shards) / (time.process_time() - started[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    texts, rows = library_texts(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        save_tokenizer(train_tokenizer(texts[::4], VOCABULARY), folder)
        tokenizer = load_tokenizer(folder)
        for _ in range(arguments.rounds):
            row = {
                "prepare": whole(folder),
                "encode": encode(tokenizer, texts, fast=False),
                "encode_batch_fast": encode(tokenizer, texts, fast=True),
                "load_average": os.getloadavg()[0],
            }
            rows.append(row)
            print(", ".join(f"{name} {value:,.1f}" for name, value in row.items()), flush=True)
    report = {"unit": "tokens a CPU second", "machine": platform.machine(), "cores": os.cpu_count(), "rounds": rows}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
