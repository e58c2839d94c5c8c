"""SIGTERM to every process of `study run`: running cells save a checkpoint and have no result yet."""

import pytest

from tests.helpers.stopping import GRACE_SECONDS, check_stopped, start, stop_at

pytestmark = pytest.mark.timeout(900)


def test_a_stopped_study_keeps_the_steps_of_its_cells(tmp_path, data_root, study_file):
    file = study_file(
        families=["transformer"],
        sizes={"xs": {"preset": "1m", "model": {"d_model": 32}, "feedforward_width": 64}},
        budgets={"tokens": [2_048_000]},
        batch={"value": 512},
        checkpoint_minutes=1000,
        hardware={"memory_gib": 4, "tflops": 0.001, "devices": 1, "startup_seconds": 1},
        limits={"min_steps": 4},
        fit={"hold_out": [], "bootstrap": 100},
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "python-stdlib-sample").symlink_to(data_root / "python-stdlib-sample")
    process = start("study", "run", file, "--studies", tmp_path / "studies", "--data", tmp_path / "data")
    run = tmp_path / "studies" / "toy" / "runs" / "transformer-xs-2.048M-s0"
    seconds, output = stop_at(process, run, 5, everyone=True)
    assert process.returncode == 0, output
    assert "1 of 1 cells are left" in output
    print(f"study run: {seconds:.1f} s from the signal to the end")
    assert seconds < GRACE_SECONDS
    assert check_stopped(run, "SIGTERM") >= 5
    assert not (run / "cell.json").exists(), "a cell that was stopped has no result"
