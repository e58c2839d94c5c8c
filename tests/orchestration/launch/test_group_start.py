"""A worker that dies between placement and the first step: its group's place is free again, and the run goes on at once."""

import os
import signal
import threading
import time

import psutil
import pytest

from echo_lm.orchestration.launch.run import run_pipeline
from echo_lm.pipeline.run.events import read_events
from echo_lm.pipeline.run.folder import RunFolder

pytestmark = pytest.mark.timeout(600)


def kill_a_worker_at_its_start(run: RunFolder, killed: list[int]) -> None:
    """Kill one worker process as soon as the group was placed: the group's file is written before any check of its nodes."""
    while not run.worker_group_file.is_file():
        time.sleep(0.002)
    while not killed:
        for process in psutil.Process().children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()) and not killed:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
            except psutil.Error:
                continue


def test_a_worker_lost_while_its_group_starts_costs_a_restart(tmp_path, data_root, smoke):
    config = smoke("train.steps=4", "run.workers=2", "run.cluster_wait_seconds=60", "evaluation.suites=[]")
    run, killed = RunFolder(tmp_path / "runs" / "smoke"), []
    threading.Thread(target=kill_a_worker_at_its_start, args=(run, killed), daemon=True).start()
    run_pipeline(config, run, data_root, tracking_uri=f"sqlite:///{tmp_path / 'm.db'}")
    events = read_events(run.events_file)
    assert killed
    assert run.finished()
    assert [event["kind"] for event in events if event["kind"] in ("attempt", "lost", "start")] == [
        "attempt",
        "lost",
        "start",
    ]
