"""Killed at any moment, a preparation on Ray ends with the bytes of an undisturbed one: driver, worker or node.

The sample here kills each once; `make soak` does so at 20 random moments.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from echo_lm.data_prep.config import DatasetConfig, NearDuplicateConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.data_prep.preparing.shards import tokenize_unit
from echo_lm.orchestration.preparation.executors import ray_data_map
from echo_lm.orchestration.preparation.prepare import prepare_dataset

DEADLINE = 240

# `prepare` as the command line runs it, on a cluster of its own.
DRIVER = """
import sys
from pathlib import Path
from echo_lm.data_prep.config import DatasetConfig
from echo_lm.orchestration.preparation.prepare import prepare_on_ray
config, root = sys.argv[1:]
prepare_on_ray(DatasetConfig.model_validate_json(Path(config).read_text()), Path(root), None, None)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    """Sixty slices with copies in them, so that every stage has something to decide."""
    generator = random.Random(4)
    words = ["".join(generator.choices("abcdefghijkl", k=generator.randint(2, 9))) for _ in range(3_000)]
    texts = [" ".join(generator.choices(words, k=generator.randint(50, 400))) for _ in range(2_400)]
    path = tmp_path_factory.mktemp("corpus") / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *texts[:50]]))
    return DatasetConfig(
        name="killed",
        sources=(SourceConfig(kind="jsonl", name="words", paths=(str(path),)),),
        tokenizer=TokenizerConfig(vocab_size=1_000, train_bytes=500_000),
        near_duplicates=NearDuplicateConfig(permutations=64),
        heldout_fraction=0.05,
        unit_bytes=65_000,
    )


@pytest.fixture(scope="module")
def expected(config: DatasetConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed run, in one process."""
    folder = prepare(config, tmp_path_factory.mktemp("undisturbed"))
    return tree(folder)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(config: DatasetConfig, root: Path) -> subprocess.Popen:
    (root / "config.json").write_text(config.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(root / "config.json"), str(root / "data")], stdout=subprocess.DEVNULL
    )


def work_files(folder: Path, pattern: str) -> int:
    return len(list((folder / "work").glob(pattern)))


def wait_for(process: subprocess.Popen, condition) -> bool:
    """Whether the condition came true before the process ended."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


def kill_driver(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)


def kill_worker(process: subprocess.Popen) -> bool:
    """`kill -9` a worker that is at a slice, if one is."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if next(iter(child.cmdline()), "").startswith("ray::Map"):  # one that is ending has none
                child.kill()
                return True
        except psutil.Error:
            continue
    return False


def run_through(config: DatasetConfig, root: Path) -> Path:
    process = start(config, root)
    assert process.wait(timeout=DEADLINE) == 0
    return root / "data" / config.name


def test_a_killed_driver_and_worker(config: DatasetConfig, expected: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "data" / config.name
    process = start(config, tmp_path)
    assert wait_for(process, lambda: work_files(folder, "clean-*.json") >= 5 and kill_worker(process))
    assert wait_for(process, lambda: work_files(folder, "tokens-*.json") >= 5)
    kill_driver(process)
    finished = {path: path.stat().st_mtime_ns for path in (folder / "work").glob("tokens-*.json")}
    assert 5 <= len(finished) < 60, "the kill must come in the middle"
    assert not (folder / "manifest.json").exists()
    process = start(config, tmp_path)
    assert wait_for(process, lambda: work_files(folder, "tokens-*.json") > len(finished))
    unchanged = {path: path.stat().st_mtime_ns for path in finished if path.exists()}
    assert process.wait(timeout=DEADLINE) == 0
    assert unchanged.items() <= finished.items(), "finished slices are not done again"
    assert tree(folder) == expected


@pytest.fixture(scope="module")
def cluster():
    """A head and two nodes on this machine, 8 cores by name; `cluster.spare()` adds a node that may die."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    store = 80 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": store})
    cluster.add_node(num_cpus=6, object_store_memory=store)
    cluster.spare = lambda: cluster.add_node(num_cpus=2, object_store_memory=store)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(8, marks=pytest.mark.slow)]
)
def test_any_number_of_workers_gives_the_same_bytes(
    cluster, workers: int, config: DatasetConfig, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = prepare_dataset(config, tmp_path, lambda *work: ray_data_map(*work, workers=workers))
    assert tree(folder) == expected


def prepare_while_a_node_dies(cluster, config: DatasetConfig, root: Path, die_when) -> Path:
    node = cluster.spare()
    cluster.wait_for_nodes()

    def kill() -> None:
        while not die_when():
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    folder = prepare_dataset(config, root, ray_data_map)
    killer.join(60)
    assert not killer.is_alive(), "the node must die before the end"
    return folder


def test_a_killed_node(cluster, config: DatasetConfig, expected: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / config.name
    prepare_while_a_node_dies(cluster, config, tmp_path, lambda: work_files(folder, "tokens-*.json") >= 3)
    assert tree(folder) == expected


def test_a_slice_that_kills_every_worker_stops_with_one_line(cluster, monkeypatch) -> None:
    from echo_lm.models.common.errors import UserError

    monkeypatch.setattr("echo_lm.orchestration.preparation.executors.MAX_RETRIES", 1)
    with pytest.raises(UserError, match="a worker died 2 times at the same slice") as caught:
        list(ray_data_map(_die, [0, 1]))
    assert "\n" not in str(caught.value)


def _die(unit: int) -> None:
    os._exit(1)


def test_the_executor_is_told_of_mistakes_as_they_were(cluster, config: DatasetConfig, tmp_path: Path) -> None:
    from echo_lm.models.common.errors import UserError

    with pytest.raises(UserError, match="is missing"):
        list(ray_data_map(_load_nothing, [tmp_path]))
    assert tokenize_unit.__module__ == "echo_lm.data_prep.preparing.shards"


def _load_nothing(folder: Path) -> None:
    from echo_lm.data_prep.preparing.tokenizer import load_tokenizer

    load_tokenizer(folder)


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_twenty_random_moments(cluster, config: DatasetConfig, expected: dict[str, bytes], tmp_path: Path) -> None:
    """The driver, a worker or a node, at a moment of the work that is drawn: so many slices, then a fraction of a second."""
    generator = random.Random(20)
    kills = {"driver": 0, "worker": 0, "node": 0}
    for trial in range(20):
        kind = ("driver", "worker", "node")[trial % 3]
        root = tmp_path / str(trial)
        root.mkdir()
        folder = root / "data" / config.name
        stage, slices, pause = generator.choice(["clean", "tokens"]), generator.randint(0, 55), generator.random() / 2

        def moment(folder=folder, stage=stage, slices=slices) -> bool:
            return work_files(folder, f"{stage}-*.json") >= slices and (folder / "plan.json").exists()

        if kind == "node":
            prepare_while_a_node_dies(cluster, config, root / "data", moment)
            kills[kind] += 1
        else:
            process = start(config, root)
            if wait_for(process, moment):
                time.sleep(pause)
                if kind == "worker":
                    kills[kind] += wait_for(process, lambda process=process: kill_worker(process))
                else:
                    kills[kind] += process.poll() is None
                    kill_driver(process)
            process.wait(timeout=DEADLINE)
            run_through(config, root)
        assert tree(folder) == expected, f"trial {trial}: {kind} at {stage} {slices}"
    assert kills["driver"] >= 5, kills
    assert kills["worker"] >= 4, kills
    assert kills["node"] >= 6, kills
