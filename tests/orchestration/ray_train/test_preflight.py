"""A node that a worker group cannot work with is named in one line, before anything trains."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.ray_train import node_checks
from echo_lm.orchestration.ray_train.preflight import WorkerGroup, check_nodes
from echo_lm.orchestration.ray_train.trainer import worker_resources


def group(nodes: str = "abc", **faults) -> WorkerGroup:
    """One process plays all ranks; `faults` says what a function gives on the last rank instead."""

    def run(function, arguments):
        last = len(arguments) - 1
        return [
            faults[function.__name__](*values) if rank == last and function.__name__ in faults else function(*values)
            for rank, values in enumerate(arguments)
        ]

    return WorkerGroup([f"node-{node}" for node in nodes], ["127.0.0.1"] * len(nodes), run)


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_sound_workers_pass_and_leave_nothing_behind(tmp_path):
    check_nodes(group(), tmp_path, parameters=1000, gpus=False)
    assert list(tmp_path.iterdir()) == []


def test_another_version_is_named(tmp_path):
    old = group(versions=lambda: node_checks.versions() | {"torch": "2.0.0"})
    with pytest.raises(UserError, match=r"node node-c \(rank 2\) has torch 2\.0\.0, this machine has") as raised:
        check_nodes(old, tmp_path, 1000, gpus=False)
    assert "install the same" in one_line(raised)


def test_other_source_of_ours_is_told_apart_whatever_its_version(tmp_path):
    edited = group(versions=lambda: node_checks.versions() | {"echo-lm source": "0" * 12})
    with pytest.raises(UserError, match=r"node-c .* has echo-lm source 000000000000"):
        check_nodes(edited, tmp_path, 1000, gpus=False)


def test_a_full_disk_is_named_before_a_checkpoint_is_lost_to_it(tmp_path):
    with pytest.raises(UserError, match=r"node-a .* MB free at .*, the run needs .* MB") as raised:
        check_nodes(group(), tmp_path, parameters=10**15, gpus=False)
    assert "free some" in one_line(raised)


@pytest.mark.parametrize("nodes", ["abc", "ab"])
@pytest.mark.parametrize(
    "apart", [("write_mark", "missing_marks"), ("write_mark",)], ids=["another folder", "writes are lost"]
)
def test_storage_that_is_not_shared_is_named(tmp_path, monkeypatch, nodes, apart):
    """The last node has a folder of its own under the same name; or sees ours, but what it writes stays with it."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(node_checks, "VISIBLE_SECONDS", 0.3)
    local = {name: partial(redirected, getattr(node_checks, name), elsewhere) for name in apart}
    with pytest.raises(UserError, match=rf"node node-{nodes[-1]} \(rank {len(nodes) - 1}\) does not share") as raised:
        check_nodes(group(nodes, **local), run, 1000, gpus=False)
    assert "--runs" in one_line(raised)
    assert list(run.iterdir()) == []


def redirected(function, folder, run_path, *arguments):
    return function(str(folder), *arguments)


def test_the_node_that_is_apart_is_named_whatever_its_rank(tmp_path, monkeypatch):
    """This machine's folder is the run's: of two nodes, the one that does not see it is wrong, be it rank 0."""
    monkeypatch.setattr(node_checks, "VISIBLE_SECONDS", 0.3)
    sound = group("ab")

    def run(function, arguments):
        if function is node_checks.missing_marks:
            return [arguments[0][1], []]
        return sound.run(function, arguments)

    with pytest.raises(UserError, match=r"node node-a \(rank 0\) does not share"):
        check_nodes(WorkerGroup(["node-a", "node-b"], ["127.0.0.1"] * 2, run), tmp_path, 1000, gpus=False)


def test_a_closed_port_is_named(tmp_path):
    closed = group(unreachable_peers=lambda peers: node_checks.unreachable_peers([("127.0.0.1", 1)]))
    with pytest.raises(UserError, match=r"node-c \(rank 2\) cannot connect to 127\.0\.0\.1 \(Connection refused\)"):
        check_nodes(closed, tmp_path, 1000, gpus=False)


def test_a_gpu_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("echo_lm.orchestration.ray_train.preflight.GPU_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"node-a \(rank 0\) sees no GPU"):
        check_nodes(group(), tmp_path, 1000, gpus=True)


def test_the_interface_is_the_one_that_has_the_address():
    assert node_checks.interface_of("127.0.0.1") == "lo"
    assert node_checks.interface_of("203.0.113.9") is None


def test_the_source_hash_knows_every_byte(tmp_path):
    """Of two copies of the installation, one with a comment more."""
    root = Path(node_checks.__file__).parents[2]
    hashes = []
    for copy in ("as-is", "edited"):
        for package in ("kernels", "models", "data_prep", "evals", "pipeline", "orchestration"):
            shutil.copytree(root / package, tmp_path / copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        if copy == "edited":
            with open(tmp_path / copy / "models" / "norm.py", "a") as file:
                file.write("# one more\n")
        hashes.append(node_checks.source_hash(tmp_path / copy))
    assert hashes[0] == node_checks.source_hash()
    assert hashes[0] != hashes[1]


def test_gpus_are_one_a_worker_and_too_few_are_refused(smoke):
    cluster = {"CPU": 16.0, "GPU": 2.0}
    assert worker_resources(smoke("run.workers=2"), cluster) == ({"CPU": 1.0, "GPU": 1.0}, True)
    assert worker_resources(smoke("run.workers=2", "run.device=cpu"), cluster) == ({"CPU": 1.0}, False)
    assert worker_resources(smoke("run.workers=4"), {"CPU": 2.0}) == ({"CPU": 0.5}, False)
    with pytest.raises(UserError, match=r"run\.workers=4 needs a GPU each, the cluster has 2"):
        worker_resources(smoke("run.workers=4"), cluster)
    assert worker_resources(smoke("run.workers=4", "run.min_workers=2"), cluster)[1]
