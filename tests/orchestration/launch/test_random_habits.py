"""Random sequences of what people do to runs end with the losses, results and record of an undisturbed run.

Four chosen actions here, a hundred sequences of eight in `make soak`. What may happen is the table in
`tests/helpers/habits/actions.py`; a sequence is played again by `python -m tests.helpers.habits.play` with its seed.
"""

import os
import sys

import pytest

from echo_lm.models.common.files import read_json, write_json
from tests.helpers.habits import trial
from tests.helpers.habits.play import play
from tests.helpers.habits.references import undisturbed
from tests.helpers.habits.world import TOPOLOGIES

SAMPLE = ["kill", "extend", "move_tree", "average"]
SAMPLE_SEED = 18  # kills the worker at step 17
MOST_SECONDS = 3600
# Plays for a fraction of a second, fails at seed 2, and hangs at seed 4 with a child.
PLAYER = """
import subprocess, sys, time
seed = int(sys.argv[sys.argv.index("--seed") + 1])
print("played", *sys.argv[1:], flush=True)
if seed == 4:
    print(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid, flush=True)
    time.sleep(1000)
sys.exit(seed == 2)
"""


def test_a_sequence(tmp_path, data_root):
    references = undisturbed(tmp_path / "undisturbed", data_root, list(TOPOLOGIES)[:1])
    (tmp_path / "trial").mkdir()
    for line in play(tmp_path / "trial", SAMPLE_SEED, "train", data_root, references, SAMPLE):
        print(line)


@pytest.fixture
def a_trial(tmp_path, data_root, monkeypatch, capsys):
    """`a_trial(*arguments)` plays with `PLAYER` and returns exit code and output; losses of undisturbed runs are there."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(trial, "LEAST_SECONDS", 0.5)
    out = tmp_path / "trial.json"
    write_json(out, {"seconds": 60.0, "played": {}, "machine": trial.machine(), "references": []})

    def call(*arguments: str) -> tuple[int, str]:
        line = ["--out", str(out), "--data", str(data_root), *arguments]
        code = trial.main(line, play=[sys.executable, "-c", PLAYER])
        return code, capsys.readouterr().out

    call.out = out
    return call


def test_a_trial_goes_on_and_says_what_failed(a_trial):
    code, output = a_trial("--seed", "1", "--train", "2", "--run", "1", "--at-once", "1")
    assert code == 1
    assert output.index("run 1: as expected") < output.index("train 1: as expected") < output.index("train 2: FAILED")
    assert "seed 1: 2 of 3 as expected in 1.0 minutes" in output
    assert "1 FAILED: train 2" in output
    held = read_json(a_trial.out)
    del held["played"]["train 2"], held["played"]["run 1"]
    write_json(a_trial.out, held)
    code, output = a_trial("--train", "2", "--run", "1")
    assert "seed 1: 2 sequences" in output
    assert "train 1: as expected" not in output
    with pytest.raises(SystemExit, match="name another file, or delete it"):
        a_trial("--seed", "4", "--train", "2", "--run", "1")


def test_a_trial_ends_in_time_with_all_that_it_started(a_trial):
    code, output = a_trial("--seed", "3", "--train", "2", "--run", "0", "--at-once", "2", "--seconds", "2")
    assert code == 1
    assert "1 were not played to their end: train 4" in output
    assert not trial.processes_with(trial.VARIABLE, f"{os.getpid()} train 4")
    assert list(read_json(a_trial.out)["played"]) == ["train 3"]


@pytest.mark.slow
@pytest.mark.timeout(2 * MOST_SECONDS)
def test_a_hundred_sequences(tmp_path, data_root):
    seed = os.environ.get("ECHO_LM_HABITS_SEED", "")
    out = tmp_path / "trial.json"
    arguments = ["--out", str(out), "--data", str(data_root), "--seconds", str(MOST_SECONDS)]
    assert trial.main([*arguments, *(["--seed", seed] if seed else [])]) == 0
