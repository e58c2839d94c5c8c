"""Hangs and stragglers are told from what ranks leave behind; sequence groups stay inside nodes."""

import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import torch.distributed as dist

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.pipeline.batches import make_loader
from echo_lm.pipeline.engine import build_engine
from echo_lm.pipeline.mesh import make_mesh, sequence_groups
from echo_lm.pipeline.monitoring.hang import HangDetector
from echo_lm.pipeline.monitoring.heartbeat import (
    FENCED,
    Heartbeat,
    HeartbeatRecord,
    read_heartbeats,
    start_worker_group,
)
from echo_lm.pipeline.monitoring.straggler import WINDOW, Stopwatch, StragglerDetector
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.update import update
from tests.helpers.training_workers import Case, play


def heartbeat(
    rank: int, step: int | None, time: float, where: str = "torch/distributed/c10d.py:9 all_reduce"
) -> HeartbeatRecord:
    return HeartbeatRecord("g", rank, 2, f"node-{rank}", 100 + rank, step, time, where)


def test_a_silent_rank_is_named_after_the_configured_time_and_not_before():
    watch = HangDetector(20)
    assert watch.hung_ranks([heartbeat(0, 5, 1.0), heartbeat(1, 5, 1.0)], now=0) == []
    for second in range(1, 20):
        assert watch.hung_ranks([heartbeat(0, 5, 1.0 + second), heartbeat(1, 5, 1.0)], now=second) == []
    assert [b.rank for b in watch.hung_ranks([heartbeat(0, 5, 21.0), heartbeat(1, 5, 1.0)], now=20)] == [1]


def test_a_rank_that_beats_but_is_stuck_outside_of_a_collective_is_named():
    watch = HangDetector(10)
    for second in range(11):
        heartbeats = [heartbeat(0, 5, second), heartbeat(1, 5, second, "lib/pathlib.py:1 read")]
        hung = watch.hung_ranks(heartbeats, now=second)
    assert [b.rank for b in hung] == [1]


def test_workers_that_move_or_have_not_begun_are_left_alone():
    watch = HangDetector(10)
    for second in range(60):
        assert watch.hung_ranks([heartbeat(0, second, second), heartbeat(1, second, second)], now=second) == []
    watch = HangDetector(10)
    for second in range(60):
        assert watch.hung_ranks([heartbeat(0, None, second), heartbeat(1, None, second)], now=second) == []


def test_a_hung_worker_group_that_was_replaced_is_forgotten():
    watch = HangDetector(10)
    for second in range(5):
        watch.hung_ranks([heartbeat(0, 5, 1.0), heartbeat(1, 5, 1.0)], now=second)
    assert watch.hung_ranks([], now=30) == [], "the next worker group has not begun to beat"
    assert watch.hung_ranks([heartbeat(0, None, 40.0), heartbeat(1, None, 40.0)], now=41) == []


def test_heartbeats_are_written_and_replaced_workers_end_themselves(tmp_path):
    """In a process whose training thread is stuck, as in a collective that never returns."""
    run = RunFolder(tmp_path)
    start_worker_group(run, "first")
    code = textwrap.dedent(f"""
        import time
        from echo_lm.pipeline.monitoring.heartbeat import Heartbeat
        from echo_lm.pipeline.run.folder import RunFolder
        with Heartbeat(RunFolder({str(tmp_path)!r}), rank=3, world=4) as heartbeat:
            heartbeat.record_step(7)
            time.sleep(120)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"ECHO_LM_WORKER_GROUP": "first", "ECHO_LM_NODE": "node-b"}
    )
    try:
        while not any(record.step == 7 for record in read_heartbeats(run)):
            assert process.poll() is None
        (record,) = read_heartbeats(run)
        assert (record.rank, record.node, record.pid) == (3, "node-b", process.pid)
        assert not Heartbeat(run, 0, 1).replaced(), "a process outside of any worker group is nobody's to replace"
        start_worker_group(run, "second")
        assert process.wait(timeout=60) == FENCED
    finally:
        process.kill()
    assert read_heartbeats(run) == []


def test_a_heartbeat_that_is_written_while_its_workers_are_replaced_does_not_stay(tmp_path):
    """The new worker group may be smaller: nobody else would write over it."""
    start_worker_group(RunFolder(tmp_path), "first")
    code = textwrap.dedent(f"""
        import time
        from echo_lm.pipeline.monitoring import heartbeat
        from echo_lm.pipeline.run.folder import RunFolder
        run, write = RunFolder({str(tmp_path)!r}), heartbeat._write
        def late(path, record):
            heartbeat.start_worker_group(run, "second")
            write(path, record)
            print("written", flush=True)
        heartbeat._write = late
        with heartbeat.Heartbeat(run, rank=3, world=4):
            time.sleep(120)
    """)
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ECHO_LM_WORKER_GROUP": "first"},
        capture_output=True,
        timeout=300,
    )
    assert (process.returncode, process.stdout) == (FENCED, b"written\n")
    assert read_heartbeats(RunFolder(tmp_path)) == []


def test_a_straggler_is_named_once_a_window_and_noise_is_not():
    detector = StragglerDetector(2.0)
    even = [[0.10, 0.11, 0.09, 0.10]] * WINDOW
    assert [straggler for compute_seconds in even for straggler in detector.record_step(compute_seconds, 0.5)] == []
    slow = [[0.10, 0.11, 0.40, 0.10]] * WINDOW
    (straggler,) = [straggler for compute_seconds in slow for straggler in detector.record_step(compute_seconds, 0.8)]
    assert straggler.rank == 2
    assert straggler.seconds == pytest.approx(0.4)
    cheap = [[0.001, 0.001, 0.005, 0.001]] * WINDOW  # five times as long, and nobody waits for it
    assert [straggler for compute_seconds in cheap for straggler in detector.record_step(compute_seconds, 0.5)] == []
    assert [
        straggler for compute_seconds in slow for straggler in StragglerDetector(0).record_step(compute_seconds, 0.8)
    ] == []


@pytest.mark.parametrize(
    ("nodes", "size", "groups"),
    [
        ("aabb", 2, [[0, 1], [2, 3]]),
        ("abab", 2, [[0, 2], [1, 3]]),
        ("aaaccbbb", 2, [[0, 1], [3, 4], [5, 6], [2, 7]]),
        ("aaaaaabb", 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("ab", 2, [[0, 1]]),
    ],
)
def test_ranks_of_a_sequence_share_a_node_where_they_fit(nodes, size, groups):
    assert sequence_groups(nodes, size) == groups


def test_an_elastic_run_goes_on_with_what_the_batch_divides_by(smoke):
    four = ["run.workers=4", "train.batch_tokens=768"]  # 12 sequences
    assert smoke(*four).worker_counts() == [4]
    assert smoke(*four, "run.min_workers=1").worker_counts() == [1, 2, 3, 4]
    assert smoke(*four, "run.min_workers=2", "run.sequence_parallel=2").worker_counts() == [2, 4]
    assert smoke("run.workers=4", "run.min_workers=2").worker_counts() == [2, 4], "8 sequences"
    assert smoke(*four, "run.min_workers=1", "run.microbatch_sequences=3").worker_counts() == [1, 2, 4]


def find_stragglers(case: Case, data) -> list:
    """Steps of a real worker group whose rank 1 is slow; what rank 0 sees of it."""
    config = case.config(dist.get_world_size())
    mesh = make_mesh(1)
    dataset = Dataset.open(data / config.data.name)
    loader = make_loader(dataset, config)
    engine = build_engine(config, dataset.tokenizer().get_vocab_size(), torch.device("cpu"), mesh)
    if mesh.rank == 1:
        engine.module.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    compute_timer, detector, compute_seconds, stragglers = Stopwatch(engine.device), StragglerDetector(2.0), 0.0, []
    for step in range(WINDOW + 1):
        started = time.perf_counter()
        compute_timer.start()
        shared = dict(compute_seconds=compute_seconds, compute_timer=compute_timer)
        result = update(
            engine,
            loader.batch(step),
            1e-4,
            config,
            mesh,
            flags=[],
            gate_penalty=0.0,
            **shared,
        )
        compute_seconds = compute_timer.seconds()
        if step:  # the first number arrives with the second step
            stragglers += detector.record_step(result.compute_seconds, time.perf_counter() - started)
    engine.destroy()
    return stragglers


def test_a_slow_rank_of_real_workers_is_named(data_root, tmp_path):
    """All ranks end their steps together, so only what each does alone tells it."""
    (stragglers,) = play([Case("echo", 2)], 2, data_root, tmp_path, find_stragglers)
    assert [straggler.rank for straggler in stragglers] == [1]
    assert stragglers[0].seconds > 0.2
