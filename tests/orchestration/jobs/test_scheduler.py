"""Faults of jobs under the one scheduler, which evaluations, cells of studies and runs of recall sweeps share."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import psutil
import pytest

from echo_lm.orchestration.evaluation.jobs import EvaluationJob
from echo_lm.orchestration.jobs import scheduler as scheduler_module
from echo_lm.orchestration.jobs.cluster import ray_cluster
from echo_lm.orchestration.jobs.executors import ProcessExecutor
from echo_lm.orchestration.jobs.job import Job, Resources, run_under_leases
from echo_lm.orchestration.jobs.leases import claim
from echo_lm.orchestration.jobs.ray_executor import RayExecutor
from echo_lm.orchestration.jobs.scheduler import Scheduler
from echo_lm.orchestration.studies.cell import CellJob
from tests.helpers.file_job import FileJob

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(scheduler_module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(scheduler_module, "HELD_SECONDS", 0.1)
    monkeypatch.setattr(scheduler_module, "pause_seconds", lambda failures: 0.05)


@pytest.fixture(scope="module", params=["processes", "ray"])
def make_executor(request):
    """Makes executors of two jobs at once, of either kind."""
    if request.param == "processes":
        yield lambda: ProcessExecutor(2)
    else:
        with ray_cluster():
            yield lambda: RayExecutor(2)


def due(*jobs: FileJob):
    return lambda: [job for job in jobs if not job.is_done()]


def attempts(job: FileJob) -> int:
    return len((job.folder / f"{job.label}.attempts").read_text().split())


def test_what_hangs_dies_or_fails_is_tried_again_and_the_others_are_done(tmp_path, make_executor):
    jobs = [
        FileJob(tmp_path, "hangs", ("hang",), timeout_seconds=6),
        FileJob(tmp_path, "dies", ("die", "raise")),
        FileJob(tmp_path, "fails", ("raise",) * 3),
        FileJob(tmp_path, "writes-nothing", ("nothing",)),
        FileJob(tmp_path, "works"),
    ]
    with make_executor() as executor:
        scheduler = Scheduler(due(*jobs), executor)
        scheduler.run()
    assert [job.label for job in jobs if job.is_done()] == ["hangs", "dies", "writes-nothing", "works"]
    assert [attempts(job) for job in jobs] == [2, 3, 3, 2, 1]
    assert scheduler.failures() == {"fails": "attempt 3"}
    assert (tmp_path / "fails.failure").read_text() == "attempt 1\nattempt 2\nattempt 3"
    assert "ValueError: attempt 1" in (tmp_path / "fails.log").read_text(), "the whole traceback is in its log"
    assert {path.stem for path in tmp_path.glob("*.success")} == {"hangs", "dies", "writes-nothing", "works"}
    assert not list(tmp_path.glob("*.lease"))
    processes = [pid for path in tmp_path.glob("*.attempts") for pid in path.read_text().split()[:1]]
    hung = (tmp_path / "hangs.attempts").read_text().split()[0]
    assert hung in processes
    assert not psutil.pid_exists(int(hung)) or psutil.Process(int(hung)).status() == psutil.STATUS_ZOMBIE


def test_the_reasons_of_a_death_and_of_a_hang(tmp_path):
    jobs = [FileJob(tmp_path, "hangs", ("hang",) * 2, timeout_seconds=3), FileJob(tmp_path, "dies", ("die",) * 2)]
    with ProcessExecutor(2) as executor:
        scheduler = Scheduler(due(*jobs), executor, attempts=2)
        scheduler.run()
    assert scheduler.failures() == {
        "hangs": "stopped, as it took longer than its limit of 3 s",
        "dies": "killed by signal 9",
    }


def test_what_another_process_holds_is_left_to_it_until_its_lease_expires(tmp_path, make_executor):
    """The holder lives, but was silent for longer than a lease lasts, as one whose machine was suspended."""
    job = FileJob(tmp_path, "held")
    lease = claim(job.leases[0], heartbeat_seconds=3600)
    with make_executor() as executor:
        scheduler = Scheduler(due(job), executor)
        for _ in range(20):
            assert scheduler.poll() == 1
            time.sleep(0.05)
        assert not scheduler.running
        os.utime(job.leases[0], (time.time() - 3600,) * 2)
        scheduler.run()
    assert job.is_done()
    assert attempts(job) == 1
    lease.release()


def test_two_schedulers_share_the_work_and_nothing_runs_twice(tmp_path, make_executor):
    jobs = [FileJob(tmp_path, f"job-{number}") for number in range(6)]

    def run() -> None:
        with make_executor() as executor:
            Scheduler(due(*jobs), executor).run()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(job.is_done() for job in jobs)
    assert [attempts(job) for job in jobs] == [1] * 6


def test_a_job_that_cannot_end_in_time_is_not_started(tmp_path):
    now = time.monotonic()
    jobs = [FileJob(tmp_path, "long"), FileJob(tmp_path, "short")]
    with ProcessExecutor(1) as executor:
        seconds = {"long": math.inf, "short": 1.0}
        Scheduler(due(*jobs), executor, until=now + 60, seconds=lambda job: seconds[job.label]).run()
    assert [job.is_done() for job in jobs] == [False, True]


def test_what_failed_and_has_no_time_left_has_failed(tmp_path):
    job, seconds = FileJob(tmp_path, "fails", ("raise",)), [0.0]
    with ProcessExecutor(1) as executor:
        scheduler = Scheduler(due(job), executor, until=time.monotonic() + 60, seconds=lambda job: seconds[0])
        scheduler.poll()
        seconds[0] = math.inf
        scheduler.run()
    assert scheduler.failures() == {"fails": "attempt 1"}
    assert (tmp_path / "fails.failure").is_file()


def attempting(folder: Path) -> list[int]:
    """The processes that have begun a job, by what they wrote: a file may be there before its line is."""
    texts = [path.read_text() for path in folder.glob("*.attempts")]
    return [int(text.split()[0]) for text in texts if text]


def test_jobs_are_packed_by_their_shares_and_stopped_with_their_executor(tmp_path):
    halves = [FileJob(tmp_path, f"half-{i}", ("hang",), resources=Resources(Fraction(1, 2))) for i in range(3)]
    with ProcessExecutor(1) as executor:
        scheduler = Scheduler(due(*halves), executor)
        scheduler.poll()
        assert [job.label for job in scheduler.running] == ["half-0", "half-1"]
        deadline = time.monotonic() + 60
        while len(pids := attempting(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_end_with_a_killed_scheduler(tmp_path):
    script = (
        "from pathlib import Path; import sys, time\n"
        "from echo_lm.orchestration.jobs.executors import ProcessExecutor\n"
        "from tests.helpers.file_job import FileJob\n"
        "if __name__ == '__main__':\n"
        "    job = FileJob(Path(sys.argv[1]), 'hangs', ('hang',))\n"
        "    with ProcessExecutor(1) as executor:\n"
        "        executor.start(job); time.sleep(3600)\n"
    )
    (tmp_path / "script.py").write_text(script)
    scheduler = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    attempts_file = tmp_path / "hangs.attempts"
    deadline = time.monotonic() + 60
    while not (attempts_file.is_file() and attempts_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = psutil.Process(int(attempts_file.read_text().split()[0]))
    os.kill(scheduler.pid, signal.SIGKILL)
    scheduler.wait()
    assert worker.wait(timeout=10) is not None or not worker.is_running()


def test_a_job_that_is_done_is_not_run_again(tmp_path):
    job = FileJob(tmp_path, "done", ("raise",))
    (tmp_path / "done.done").touch()
    assert run_under_leases(job)
    assert not (tmp_path / "done.attempts").exists()


def test_the_users_of_the_scheduler_are_jobs():
    from echo_lm.orchestration.sweeps.queue import GroupJob

    assert all(issubclass(kind, Job) for kind in (EvaluationJob, CellJob, GroupJob))
