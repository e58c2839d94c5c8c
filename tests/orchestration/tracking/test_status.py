"""The status of a run in MLflow: after a stop, after a crash, and when it goes on."""

import os
import subprocess
import sys
import time

import pytest
import yaml

from echo_lm.models.common.files import write_json
from echo_lm.orchestration.tracking.mlflow import Tracker, track
from echo_lm.pipeline.monitoring.node import node_name
from echo_lm.pipeline.run.events import EventLog
from tests.helpers.tracked_runs import START, all_runs


def write(folder, *kinds: str, at: float = START + 140) -> None:
    with EventLog(folder / "events.jsonl") as log:
        for kind in kinds:
            log.write(kind, time=at, step=20, tokens=1280)


def status(folder) -> tuple[str, int | None]:
    (run,) = all_runs(folder)
    return run.info.status, run.info.end_time


def beat(folder, pid: int, node: str) -> None:
    record = {"worker_group": "", "rank": 0, "world": 1, "node": node, "pid": pid, "step": 20, "time": 0.0, "where": ""}
    write_json(folder / "heartbeats" / "rank_00000.json", record)


def test_a_stopped_run_is_killed_and_runs_again_when_it_goes_on(run_folder):
    tracker = Tracker(run_folder)
    write(run_folder, "stop")
    tracker.sync()
    assert status(run_folder) == ("KILLED", int((START + 140) * 1000))
    write(run_folder, "start", at=START + 200)
    tracker.sync()
    assert status(run_folder)[0] == "RUNNING"
    write(run_folder, "finish", at=START + 210)
    track(run_folder)
    assert status(run_folder) == ("FINISHED", int((START + 210) * 1000))


def test_a_run_that_reached_its_stop_step_is_killed(run_folder):
    config = yaml.safe_load((run_folder / "config.yaml").read_text()) | {"run": {"stop_step": 20}}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(run_folder / "checkpoints" / "step_00000020" / "complete.json", {"step": 20, "tokens": 1280})
    track(run_folder)
    assert status(run_folder)[0] == "KILLED"


def test_a_crash_is_seen_from_outside_and_by_the_process_that_supervises(run_folder):
    tracker = Tracker(run_folder)
    tracker.sync()
    assert status(run_folder)[0] == "RUNNING", "whoever calls this trains"
    tracker.sync(alive=False)
    assert status(run_folder) == ("FAILED", int((START + 121) * 1000))
    tracker.sync()
    assert status(run_folder)[0] == "RUNNING"
    track(run_folder)
    assert status(run_folder)[0] == "FAILED"


@pytest.mark.parametrize(("where", "expected"), [("here", "FAILED"), ("elsewhere", "RUNNING")])
def test_a_process_of_this_machine_that_is_gone_is_dead_at_once(run_folder, where, expected):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    beat(run_folder, gone.pid, node_name() if where == "here" else "another-machine")
    track(run_folder)
    assert status(run_folder)[0] == expected


def test_a_living_process_runs_until_it_records_an_error(run_folder):
    beat(run_folder, os.getpid(), node_name())
    track(run_folder)
    assert status(run_folder)[0] == "RUNNING"
    old = time.time() - 60
    os.utime(run_folder / "heartbeats" / "rank_00000.json", (old, old))
    track(run_folder)
    assert status(run_folder)[0] == "FAILED", "its heartbeat is old"
    beat(run_folder, os.getpid(), node_name())
    write_json(run_folder / "error.json", {"message": "no data"})
    track(run_folder)
    assert status(run_folder)[0] == "FAILED"
