"""Throughput of data preparation against the `tokenizers` library alone: same text, same cores, same run.

    python -m benchmarks.data.tokenization benchmarks/results/tokenization_HARDWARE_DATE.json [--kind linux-doc] [--data data]

Two cores, about twenty minutes if nothing else runs; sources and slices are those of the recipe `english` unless named. The
rival encodes documents that lie in memory, one process a core, and writes nothing: once as most scripts do (`encode`), once
with the library's fastest call (`encode_batch_fast`). Ours runs `prepare` with a tokenizer that exists: it reads the files,
decodes JSON, normalises, hashes, looks for copies and 13-word overlaps, tokenizes, writes and hashes shards. Not counted:
the start of Ray and of its workers, fetching, planning, and training the tokenizer. A sample counts only if nothing else on
the machine took more than a tenth of a core meanwhile; what was disturbed is taken again. A rate is the best of the samples
that count. CPU time is of the loop alone for the rival, of every process, Ray's too, for ours.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.preparing.manifest import read_manifest
from echo_lm.data_prep.preparing.prepare import DOWNLOADS_FOLDER, prepare
from echo_lm.data_prep.preparing.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from echo_lm.data_prep.sources import find_source
from echo_lm.orchestration.preparation.executors import ray_data_map

VOCABULARY = 8192
KINDS = (  # of `pipeline/recipes/english.yaml`
    *("wikipedia-vital", "brown", "jane-austen", "gcide", "foldoc", "treasury-of-david"),
    *("debian-descriptions", "linux-doc", "python-doc", "perl-doc", "postgresql-doc"),
)
UNIT_BYTES = 8_000_000
WARM_BYTES = 4_000_000  # of text, for the workers' start
STORE = 80 * 2**20  # of each node; documents never enter it
OTHERS_SHARE = 0.1  # of a core
CALLS = ("encode", "encode_batch_fast")

Measured = tuple[int, float, float]  # tokens, seconds, seconds of CPU time


def read_texts(jsonl: Path) -> list[str]:
    with open(jsonl, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def encode_part(jsonl: Path, tokenizer: Path, part: int, parts: int, call: str, start, results) -> None:
    """Encode every `parts`-th document; put (tokens, seconds, CPU seconds) into `results`."""
    loaded = load_tokenizer(tokenizer)
    texts = read_texts(jsonl)[part::parts]
    start.wait()
    started, cpu, tokens = time.perf_counter(), time.process_time(), 0
    for text in texts:
        if call == "encode_batch_fast":
            tokens += len(loaded.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        else:
            tokens += len(loaded.encode(text, add_special_tokens=False).ids)
    results.put((tokens, time.perf_counter() - started, time.process_time() - cpu))


def run_library(jsonl: Path, tokenizer: Path, cores: int, call: str) -> Measured:
    """Measure the library alone, on `cores` processes."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(cores), context.Queue()
    work = [(jsonl, tokenizer, i, cores, call, start, results) for i in range(cores)]
    processes = [context.Process(target=encode_part, args=arguments) for arguments in work]
    for process in processes:
        process.start()
    measurements = [results.get() for _ in processes]
    for process in processes:
        process.join()
    tokens, seconds, cpu = zip(*measurements, strict=True)
    return sum(tokens), max(seconds), sum(cpu)


def run_prepare(config: DatasetConfig, workers: int | None) -> Measured:
    """Measure the whole preparation, from the first slice to the manifest."""
    started: list[tuple[float, float]] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "clean" and not started:
            started.append((time.perf_counter(), own_seconds()))

    with tempfile.TemporaryDirectory() as root:
        folder = prepare(config, Path(root), map_units=partial(ray_data_map, workers=workers), on_progress=progress)
        seconds, cpu = time.perf_counter() - started[0][0], own_seconds() - started[0][1]
        return sum(shard.tokens for shard in read_manifest(folder).shards), seconds, cpu


def own_seconds() -> float:
    """CPU seconds of this process and all of its children so far, ended ones included."""
    seconds = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            seconds += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return seconds


def machine_seconds() -> float:
    """CPU seconds of all processes of the machine so far."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def sample(case: str, work: Callable[[], Measured]) -> dict:
    """Take one measurement, with the share of a core that other programs used meanwhile."""
    started, own_before, machine_before = time.perf_counter(), own_seconds(), machine_seconds()
    tokens, seconds, cpu = work()
    others = (machine_seconds() - machine_before) - (own_seconds() - own_before)
    share = max(0.0, others / (time.perf_counter() - started))
    row = {"case": case, "tokens": tokens, "seconds": seconds, "cpu_seconds": cpu, "others_share": share}
    print(
        f"{case:42}{tokens / seconds:12,.0f} tokens/s{tokens / cpu:12,.0f} a CPU second, others {share:.2f}", flush=True
    )
    return row


def take_samples(cases: dict[str, Callable[[], Measured]], samples: int, minutes: float) -> list[dict]:
    """Sample all cases in turns until `samples` of each are valid; exits when the time is over."""
    rows: list[dict] = []
    deadline = time.monotonic() + 60 * minutes
    while missing := [case for case in cases if len(valid_samples(rows, case)) < samples]:
        for case in missing:
            if time.monotonic() > deadline:
                sys.exit(f"not a measurement: other programs were at work for {minutes:g} minutes")
            rows.append(sample(case, cases[case]))
    return rows


def valid_samples(rows: list[dict], case: str) -> list[dict]:
    return [row for row in rows if row["case"] == case and row["others_share"] <= OTHERS_SHARE]


@contextmanager
def cluster(nodes: int, cpus: int) -> Iterator[None]:
    """Context with a cluster of several nodes on this machine, and this process connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    ray_nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "object_store_memory": STORE})
    for _ in range(nodes - 1):
        ray_nodes.add_node(num_cpus=cpus, object_store_memory=STORE)
    ray.init(address=ray_nodes.address, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()
        ray_nodes.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", action="append", help="of a source; may be given several times")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--samples", type=int, default=2, help="of each case")
    parser.add_argument("--minutes", type=float, default=20, help="of each of the three parts, at most")
    arguments = parser.parse_args()
    kinds = arguments.kind or KINDS
    downloads = arguments.data / DOWNLOADS_FOLDER
    files = [Path(find_source(SourceConfig(kind=kind), downloads).files[0]) for kind in kinds]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text = folder / "text.jsonl"
        text.write_bytes(b"".join(file.read_bytes() for file in files))
        warm = folder / "warm.jsonl"
        warm.write_bytes(b"\n".join(text.read_bytes()[:WARM_BYTES].splitlines()[:-1]))
        texts = read_texts(text)
        size = sum(len(one.encode()) for one in texts)
        save_tokenizer(train_tokenizer(texts[::4], VOCABULARY), folder)
        del texts
        config = DatasetConfig(
            name="benchmark",
            sources=(SourceConfig(kind="jsonl", paths=(str(text),)),),
            tokenizer=TokenizerConfig(load=str(folder)),
            exact_duplicates="keep",
            unit_bytes=UNIT_BYTES,
        )
        small = config.model_copy(
            update={"sources": (SourceConfig(kind="jsonl", paths=(str(warm),)),), "unit_bytes": WARM_BYTES // 8}
        )
        library_cases = {
            f"tokenizers {call}, {cores} core(s)": partial(run_library, text, folder, cores, call)
            for cores in (1, 2)
            for call in CALLS
        }
        rows = take_samples(library_cases, arguments.samples, arguments.minutes)
        prepare_cases = {f"prepare, {cores} core(s)": partial(run_prepare, config, cores) for cores in (1, 2)}
        for nodes, cpus, cases in (
            (1, 2, prepare_cases),
            (4, 1, {"prepare, 4 nodes of 1 on 2 cores": partial(run_prepare, config, None)}),
        ):
            with cluster(nodes, cpus):
                run_prepare(small, None)  # starts the workers
                rows += take_samples(cases, arguments.samples, arguments.minutes)
    report = {"kinds": kinds, "text_bytes": size, "machine": platform.machine(), "cores": os.cpu_count()}
    report |= {"rates": summarise(rows), "samples": rows}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def summarise(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Tokens per second of each case, by the clock and by CPU time; prints their ratios."""
    rates = {
        case: {
            "tokens_per_second": max(row["tokens"] / row["seconds"] for row in valid_samples(rows, case)),
            "tokens_per_cpu_second": max(row["tokens"] / row["cpu_seconds"] for row in valid_samples(rows, case)),
        }
        for case in dict.fromkeys(row["case"] for row in rows)
    }
    for cores in (1, 2):
        for call in CALLS:
            prepare_rates, library_rates = (
                rates[f"prepare, {cores} core(s)"],
                rates[f"tokenizers {call}, {cores} core(s)"],
            )
            clock, cpu = (prepare_rates[key] / library_rates[key] for key in library_rates)
            print(f"prepare / {call}, {cores} core(s): {clock:.0%} by the clock, {cpu:.0%} by CPU time")
    one, two, four = (
        rates[f"prepare, {case}"]["tokens_per_second"] for case in ("1 core(s)", "2 core(s)", "4 nodes of 1 on 2 cores")
    )
    print(f"1 -> 2 cores: {two / one:.2f}x; 4 nodes / 1 node: {four / two:.0%}")
    return rates


if __name__ == "__main__":
    main()
