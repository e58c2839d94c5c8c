"""Data preparation against the `tokenizers` library alone: same text, same cores, same run, taking turns.

    python benchmarks/tokenization.py [--kind linux-doc] [--data data] [--rounds 3] [--out results.json]

The rival encodes documents that lie in memory, one process a core, and writes nothing: once as most scripts do (`encode`),
once with the library's fastest call (`encode_batch_fast`). Ours runs `prepare` with a tokenizer that exists: it reads the
files, decodes JSON, normalises, hashes, looks for copies and 13-word overlaps, tokenizes, writes and hashes shards. Not
counted: the start of Ray and of its workers, fetching, planning, and training the tokenizer. Each figure is the best of the
rounds, since anything else on the machine only slows things down.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.manifest import read_manifest
from echo_lm.data_prep.prepare import DOWNLOADS_FOLDER, prepare
from echo_lm.data_prep.sources import find_source
from echo_lm.data_prep.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from echo_lm.orchestration.units import ray_data_map

VOCABULARY = 8192
STORE = 80 * 2**20  # of each node; documents never enter it


def rival(jsonl: Path, tokenizer: Path, part: int, parts: int, fast: bool, start, results) -> None:
    """Encode every `parts`-th document; put (tokens, seconds)."""
    loaded = load_tokenizer(tokenizer)
    with open(jsonl, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for i, line in enumerate(file) if i % parts == part]
    start.wait()
    begun, tokens = time.perf_counter(), 0
    for text in texts:
        if fast:
            tokens += len(loaded.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        else:
            tokens += len(loaded.encode(text, add_special_tokens=False).ids)
    results.put((tokens, time.perf_counter() - begun))


def run_rival(jsonl: Path, tokenizer: Path, cores: int, fast: bool) -> float:
    """Tokens a second of the library alone."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(cores), context.Queue()
    work = [(jsonl, tokenizer, i, cores, fast, start, results) for i in range(cores)]
    processes = [context.Process(target=rival, args=arguments) for arguments in work]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(tokens for tokens, _ in found) / max(seconds for _, seconds in found)


def run_ours(config: DatasetConfig, workers: int | None) -> float:
    """Tokens a second of the whole preparation, from the first slice to the manifest."""
    begun: list[float] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "clean" and not begun:
            begun.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as root:
        folder = prepare(config, Path(root), map_units=partial(ray_data_map, workers=workers), on_progress=progress)
        seconds = time.perf_counter() - begun[0]
        return sum(shard.tokens for shard in read_manifest(folder).shards) / seconds


def cpu_rates(jsonl: Path, tokenizer: Path, config: DatasetConfig) -> dict[str, float]:
    """Tokens a second of this process's CPU time, without Ray: what other work on the machine disturbs least."""
    loaded = load_tokenizer(tokenizer)
    with open(jsonl, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    calls = {
        "encode": lambda text: loaded.encode(text, add_special_tokens=False),
        "encode_batch_fast": lambda text: loaded.encode_batch_fast([text], add_special_tokens=False)[0],
    }
    rates = {}
    for name, call in calls.items():
        begun = time.process_time()
        tokens = sum(len(call(text).ids) for text in texts)
        rates[f"CPU time: tokenizers {name}"] = tokens / (time.process_time() - begun)
    marks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root:
        folder = prepare(config, Path(root), on_progress=lambda stage, *_: marks.setdefault(stage, time.process_time()))
        seconds = time.process_time() - marks["clean"]
        tokens = sum(shard.tokens for shard in read_manifest(folder).shards)
    return {**rates, "CPU time: prepare": tokens / seconds}


def on_cluster(nodes: int, cpus: int, config: DatasetConfig, workers: list[int | None], rounds: int) -> list[float]:
    """Best of `rounds` for each number of workers, after a first run that starts the worker processes."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "object_store_memory": STORE})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=cpus, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        run_ours(config, None)
        return [max(run_ours(config, count) for _ in range(rounds)) for count in workers]
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", default="linux-doc")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--rounds", type=int, default=3, help="0: only the CPU time of one process")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    (jsonl,) = find_source(SourceConfig(kind=arguments.kind), arguments.data / DOWNLOADS_FOLDER).files
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with open(jsonl, encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        save_tokenizer(train_tokenizer(texts[::4], VOCABULARY), folder)
        shutil.copy(jsonl, folder / "text.jsonl")
        config = DatasetConfig(
            name="benchmark",
            sources=(SourceConfig(kind="jsonl", paths=(str(folder / "text.jsonl"),)),),
            tokenizer=TokenizerConfig(load=str(folder)),
            exact_duplicates="keep",
        )
        rates: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for cores in (1, 2):
                for name, fast in (("encode", False), ("encode_batch_fast", True)):
                    key = f"tokenizers {name}, {cores} core(s)"
                    rates[key] = max(rates.get(key, 0), run_rival(jsonl, folder, cores, fast))
        for _ in range(max(arguments.rounds, 1)):
            for key, rate in cpu_rates(jsonl, folder, config).items():
                rates[key] = max(rates.get(key, 0), rate)
        if arguments.rounds:
            one, two = on_cluster(1, 2, config, [1, 2], arguments.rounds)
            (four,) = on_cluster(4, 1, config, [None], arguments.rounds)
            rates |= {"prepare, 1 core": one, "prepare, 2 cores": two, "prepare, 4 nodes of 1 on 2 cores": four}
    for name, rate in rates.items():
        print(f"{name:40} {rate:12,.0f} tokens/s")
    for name in ("encode", "encode_batch_fast"):
        share = rates["CPU time: prepare"] / rates[f"CPU time: tokenizers {name}"]
        print(f"CPU time: prepare / {name}: {share:.0%}")
    if arguments.rounds:
        for cores, ours in ((1, one), (2, two)):
            for name in ("encode", "encode_batch_fast"):
                print(f"prepare / {name}, {cores} core(s): {ours / rates[f'tokenizers {name}, {cores} core(s)']:.0%}")
        print(f"1 -> 2 cores: {two / one:.2f}x; 4 nodes / 1 node: {four / two:.0%}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"kind": arguments.kind, "rates": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main()
