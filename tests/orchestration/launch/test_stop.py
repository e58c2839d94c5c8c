"""SIGTERM to `train` and `run`: a checkpoint of the last step, nothing left behind, and the same command goes on.

A batch system sends it half a minute before it kills everything; Slurm without `B:` and systemd to every process of the job.
"""

import signal

import pytest

from echo_lm.pipeline.run.events import read_events
from tests.helpers.stopping import GRACE_SECONDS, check_stopped, start, stop_at

LONG = ["train.steps=4000", "run.checkpoint_every=4000", "run.workers=2", "evaluation.suites=[]"]

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    ("command", "number", "everyone"),
    [
        ("train", signal.SIGTERM, False),
        pytest.param("train", signal.SIGUSR1, True, marks=pytest.mark.slow),
        ("run", signal.SIGTERM, True),
    ],
)
def test_a_stopped_run_keeps_its_last_step_and_goes_on(tmp_path, data_root, command, number, everyone):
    run = tmp_path / "runs" / "smoke"
    options = [] if command == "train" else ["--tracking-uri", f"sqlite:///{tmp_path / 'm.db'}"]
    line = [command, "smoke", *LONG, "--runs", tmp_path / "runs", "--data", data_root, *options]
    process = start(*line)
    seconds, output = stop_at(process, run, 5, number, everyone=everyone)
    assert process.returncode == 0, output
    assert "the same command goes on" in output.replace("\n", " ")
    print(f"{command}: {seconds:.1f} s from the signal to the end")
    assert seconds < GRACE_SECONDS
    # The command of `train` passes any of them on as SIGTERM.
    stopped = check_stopped(run, signal.Signals(number).name if command == "run" or everyone else "SIGTERM")
    again = start(*line, f"run.stop_step={stopped + 2}")
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    assert f"run.stop_step={stopped + 2} is reached, `echo-lm {command} " in " ".join(output.split())
    starts = [event["step"] for event in read_events(run / "events.jsonl") if event["kind"] == "start"]
    assert starts == [0, stopped]
