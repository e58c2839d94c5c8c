"""Training in plain processes: the same curve on any number of them, exact resumption, complete-or-absent checkpoints."""

import hashlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from echo_lm.evals.layout import complete_checkpoints
from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.checkpoint.format import latest_checkpoint
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.preflight import check_run
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers import warm
from tests.helpers.trainings import train_all


def set_up(config, tmp_path, data_root, name="run") -> RunFolder:
    run = RunFolder(tmp_path / name)
    run.prepare(config, data_root / config.data.name)
    return run


def losses(run: RunFolder) -> torch.Tensor:
    return torch.tensor([event["loss"] for event in steps(read_events(run.events_file))], dtype=torch.float64)


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(run) / "model" / "model.safetensors")


def made(checkpoint: Path) -> float:
    """When it was complete."""
    return (checkpoint / "complete.json").stat().st_mtime


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_root):
    """A run of two ZeRO-2 processes to its end."""
    config = load_config("smoke")
    run = set_up(config, tmp_path_factory.mktemp("undisturbed"), data_root)
    with warm.forking():
        launch(run, config)
    return run


def test_training_learns_and_records_every_step(undisturbed):
    curve = losses(undisturbed)
    assert len(curve) == 30
    assert curve[-5:].mean() < curve[:2].mean() - 0.5
    assert undisturbed.finished()
    events = steps(read_events(undisturbed.events_file))
    assert [event["tokens"] for event in events] == [512 * n for n in range(1, 31)]
    assert {
        "loss_text",
        "loss_recall",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "data_stall_seconds",
        "cpu_percent",
        "process_gib",
    } <= events[0].keys()
    assert sum("cpu_percent" in event for event in events) < len(events), "the machine is measured every ten seconds"
    assert [folder.name for folder, _ in complete_checkpoints(undisturbed.path)] == [
        f"step_{n:08d}" for n in (10, 20, 30)
    ]


def test_stop_and_resume_is_bit_exact(undisturbed, tmp_path, data_root, smoke):
    config = smoke("run.stop_step=20")
    run = set_up(config, tmp_path, data_root)
    before = dict(os.environ)
    launch(run, config)
    assert dict(os.environ) == before, "what is meant for the workers stays with them"
    assert not run.finished()
    config = smoke()
    run.prepare(config, data_root / config.data.name)
    train_all([run.path], world=2)
    assert torch.equal(losses(run), losses(undisturbed))
    expected = weights(undisturbed)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())


def test_one_process_with_microbatches_changes_nothing_but_rounding(undisturbed, tmp_path, data_root, smoke):
    config = smoke("run.workers=1", "run.microbatch_sequences=2", "run.stop_step=10", "run.zero_stage=0")
    run = set_up(config, tmp_path, data_root)
    train_all([run.path])
    torch.testing.assert_close(losses(run), losses(undisturbed)[:10], rtol=1e-5, atol=0)


def test_a_run_that_loses_a_process_ends_like_the_undisturbed_run(undisturbed, tmp_path, data_root, smoke, kill_rank_0):
    """Two ZeRO-2 processes, one killed after the first checkpoint; the agent restarts both."""
    config = smoke()
    run = set_up(config, tmp_path, data_root)
    kill_rank_0(run, 12, after=10)
    launch(run, config)
    _, again = [event for event in read_events(run.events_file) if event["kind"] == "start"]
    # On a busy machine the kill may come after the second checkpoint.
    before = [record["step"] for folder, record in complete_checkpoints(run.path) if made(folder) < again["time"]]
    assert again["step"] == max(before), "the last checkpoint that was complete"
    assert torch.equal(losses(run), losses(undisturbed))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5, 10, 11, 20, 29])
def test_a_kill_at_any_step_changes_nothing(step, undisturbed, tmp_path, data_root, smoke, kill_rank_0):
    """The long form of the test above: before the first checkpoint, right after one, while one is written, near the end."""
    config = smoke()
    run = set_up(config, tmp_path, data_root)
    kill_rank_0(run, step)
    launch(run, config)
    assert sum(event["kind"] == "start" for event in read_events(run.events_file)) == 2
    assert torch.equal(losses(run), losses(undisturbed))


def test_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path, data_root, smoke):
    """The file system's free space is the one thing made up here."""
    config = smoke("run.workers=1", "run.stop_step=10")
    run = set_up(config, tmp_path, data_root)
    train_all([run.path])
    config = smoke("run.workers=1")
    run.prepare(config, data_root / config.data.name)
    code = "import shutil, sys; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000)\n"
    code += "from echo_lm.pipeline.loop import train; train(sys.argv[1])"
    assert warm.run_code(code, run.path, log=tmp_path / "log") != 0
    with pytest.raises(UserError, match="no space for a checkpoint .* MB are free"):
        run.raise_recorded_error()
    assert latest_checkpoint(run).name == "step_00000010"
    train_all([run.path])
    assert run.finished()


def test_damaged_checkpoints_are_set_aside_and_foreign_ones_refused_in_one_line(
    undisturbed, tmp_path, data_root, smoke
):
    config = smoke()
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(undisturbed.path, copy.path)
    copy.prepare(config, data_root / config.data.name)
    check_run(copy, config)

    with pytest.raises(UserError, match=r"holds a run with another model.d_model \(stored 32, asked 64\)"):
        copy.prepare(smoke("model.d_model=64"), data_root / config.data.name)

    def make_foreign() -> Path:
        file = latest_checkpoint(copy) / "model" / "config.json"
        other = json.loads(file.read_text())
        other["echo"]["d_model"] = 64
        file.write_text(json.dumps(other))
        return file

    damaged = make_foreign().parents[1]
    assert copy.finished()
    check_run(copy, config)
    assert not damaged.exists()
    assert damaged.with_name(f".damaged.{damaged.name}").is_dir()
    assert not copy.finished(), "its last step has to be trained again"
    file = make_foreign()
    record = json.loads((latest_checkpoint(copy) / "complete.json").read_text())
    record["sha256"]["model/config.json"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (latest_checkpoint(copy) / "complete.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="holds another architecture: its d_model is 64, the run's is 32"):
        check_run(copy, config)


def test_half_written_checkpoint_is_never_the_latest(undisturbed, tmp_path):
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(undisturbed.path, copy.path)
    last = latest_checkpoint(copy)
    last.rename(last.with_name(f".{last.name}.partial"))
    assert latest_checkpoint(copy).name == "step_00000020"


def test_run_folder_in_use_is_refused(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.lock(), pytest.raises(UserError, match="is in use by another process"), RunFolder(run.path).lock():
        pass
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds files but no run"):
        RunFolder(other).prepare(load_config("smoke"), tmp_path)
    assert (other / "thesis.txt").read_text() == "precious"


def test_port_in_use_is_refused(tmp_path, data_root, smoke):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = smoke("run.workers=2", f"run.master_port={port}")
        run = set_up(config, tmp_path, data_root)
        with pytest.raises(UserError, match=f"port {port} .* is in use"):
            launch(run, config)
