"""The parts of the training loop that need no processes: schedule, prefetch, metrics, mesh, health ranges."""

import os
import time
from types import SimpleNamespace

import pytest
import torch

from echo_lm.evals.layout import complete_checkpoints
from echo_lm.models import LayerHealth, preset
from echo_lm.models.accounting import training_flops
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import read_json, write_json
from echo_lm.pipeline.batches import Prefetcher
from echo_lm.pipeline.checkpoint.writer import rank_record_path, write_rank_record
from echo_lm.pipeline.mesh import Mesh
from echo_lm.pipeline.monitoring.metrics import bits_per_byte, model_flops_utilization, peak_flops
from echo_lm.pipeline.monitoring.ska_health import SKAHealthMonitor, out_of_range
from echo_lm.pipeline.run.folder import describe_environment
from echo_lm.pipeline.schedule import gate_penalty_at, learning_rate_at


def test_warmup_stable_decay(smoke):
    train = smoke("train.schedule=warmup-stable-decay", "train.decay_fraction=0.2", "train.learning_rate=1").train
    rates = [learning_rate_at(step, train) for step in range(train.steps + 1)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]  # 2,048 tokens of warmup in batches of 512
    assert rates[4:25] == [1.0] * 21
    assert rates[27] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[30] == pytest.approx(0.1)


def test_open_gates_cost_nothing_in_the_first_half(smoke):
    train = smoke("train.steps=8", "train.gate_penalty=2").train
    assert [gate_penalty_at(step, train) for step in range(8)] == [0, 0, 0, 0, 0.5, 1, 1.5, 2]
    assert gate_penalty_at(0, smoke("train.steps=1", "train.gate_penalty=2", "mixture.recall.share=0.5").train) == 2
    assert gate_penalty_at(7, smoke("train.steps=8").train) == 0


def test_prefetch_gives_every_step_in_order_and_starts_over_where_asked():
    loaded_steps = []
    with Prefetcher(lambda step: loaded_steps.append(step) or step, 10, depth=3) as batches:
        assert [batches.batch(step)[0] for step in (4, 5, 6)] == [4, 5, 6]
        assert [batches.batch(step)[0] for step in (2, 3)] == [2, 3]
        assert [batches.batch(step)[0] for step in (9,)] == [9]
    assert max(loaded_steps) == 9, "nothing is made beyond the end"


def test_prefetch_works_ahead_and_measures_the_wait():
    def make(step: int) -> int:
        if step == 0:
            time.sleep(0.2)
        return step

    with Prefetcher(make, 3, depth=2) as batches:
        assert batches.batch(0)[1] > 0.1
        assert batches.batch(1)[0] == 1


def test_mfu_and_bits_per_byte_are_their_formulas():
    model = preset("echo-1m", vocab_size=512)
    assert model_flops_utilization(model, 128, 1e6, 1e12, 2) == training_flops(model, 128) * 1e6 / 2e12
    assert model_flops_utilization(model, 128, 1e6, peak_flops(torch.device("cpu"), "bf16"), 2) is None
    assert bits_per_byte(torch.log(torch.tensor(16.0)).item(), 2.0) == pytest.approx(2.0)


def test_mesh_puts_neighbours_on_one_sequence():
    places = [(mesh.replica, mesh.segment) for mesh in (Mesh(rank, 4, 2) for rank in range(4))]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_layer_out_of_range_is_named():
    fine = LayerHealth(3, 2.0, 0.9, 0.5, 0.1, 0.2)
    assert out_of_range(fine) == []
    assert out_of_range(fine._replace(closed_gates=1.0)) == ["layer 3: closed_gates is 1, above 0.999"]
    assert len(out_of_range(fine._replace(sigma_max=float("nan"), written_share=0.0))) == 2
    assert out_of_range(fine._replace(mean_gate=float("nan"))) == ["layer 3: mean_gate is not a number"]
    assert out_of_range(fine._replace(smallest_eigenvalue=-2.0)) == ["layer 3: smallest_eigenvalue is -2, below 0.5"]


def test_a_look_that_fails_is_a_warning(monkeypatch):
    def out_of_memory(model, tokens):
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")

    monkeypatch.setattr("echo_lm.pipeline.monitoring.ska_health.ska_health", out_of_memory)
    engine = SimpleNamespace(
        module=SimpleNamespace(config=preset("echo-1m")), zero_optimization_stage=lambda: 0, device="cpu"
    )
    monitor = SKAHealthMonitor(engine, SimpleNamespace(run=SimpleNamespace(health_every=10)))
    assert [monitor.due(step) for step in (9, 10)] == [False, True]
    mesh = SimpleNamespace(rank=0, rows=lambda batch: batch)
    events = list(monitor.measure(SimpleNamespace(tokens=torch.zeros(1, 4)), mesh, 10))
    assert events == [("warning", {"message": "SKA health could not be measured: CUDA out of memory."})]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.workers=4", "run.sequence_parallel=3"], "run.workers=4 is not a multiple of run.sequence_parallel=3"),
        (["run.workers=3", "run.sequence_parallel=3"], "train.sequence_length=64 is not a multiple"),
        (["run.zero_stage=0", "train.precision=bf16"], "use stage 1"),
        (["run.zero_stage=0", "run.offload_optimizer=true"], "use stage 1, 2 or 3"),
    ],
)
def test_a_topology_that_does_not_fit(smoke, overrides, message):
    with pytest.raises(UserError, match=message):
        smoke(*overrides)


def test_a_ranks_record_is_the_last_that_it_does_to_a_checkpoint(tmp_path, monkeypatch):
    """Rank 0 gives the folder its final name the moment it sees the last record."""
    partial, final = tmp_path / ".step_00000010.partial", tmp_path / "step_00000010"
    partial.mkdir()
    replace = os.replace

    def replace_and_complete(source, target):
        replace(source, target)
        partial.rename(final)

    monkeypatch.setattr(os, "replace", replace_and_complete)
    write_rank_record(partial, 1, {"engine/rank_00001.safetensors": "ab"})
    assert read_json(rank_record_path(final, 1)) == {"engine/rank_00001.safetensors": "ab"}


def test_a_checkpoint_that_is_being_completed_is_not_complete(tmp_path):
    for name in (".step_00000020.partial", "step_00000010"):
        write_json(tmp_path / "checkpoints" / name / "complete.json", {"step": 10})
    assert [folder.name for folder, _ in complete_checkpoints(tmp_path)] == ["step_00000010"]


def test_code_without_its_history_is_told_its_commit(monkeypatch):
    monkeypatch.setenv("ECHO_LM_COMMIT", "abc1234-dirty")
    environment = describe_environment()
    assert (environment["git_commit"], environment["git_dirty"]) == ("abc1234", True)
    monkeypatch.delenv("ECHO_LM_COMMIT")
    assert describe_environment()["git_commit"] != "abc1234"
