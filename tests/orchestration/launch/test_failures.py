"""Twenty kills at random moments, of workers, nodes, heads and MLflow servers (`make soak`)."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TRIALS = "benchmarks.faults.failure_trials"


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("set_up", ["nodes", pytest.param("netns", marks=pytest.mark.netns)])
def test_whatever_dies_the_run_ends_as_if_nothing_had_been(set_up, tmp_path):
    seed = random.randrange(10**6)
    command = [sys.executable, "-m", TRIALS, "--set-up", set_up, "--trials", "10", "--seed", str(seed)]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT)
    (rows,) = [json.loads(path.read_text())["rows"] for path in tmp_path.glob("failures_*.json")]
    wrong = [row for row in rows if not row["good"]]
    assert len(rows) == 11
    assert not wrong, f"seed {seed}: {wrong}"
