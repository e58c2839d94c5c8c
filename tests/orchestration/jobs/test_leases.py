"""Leases: one holder at a time, and the dead hold nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

from echo_lm.orchestration.jobs.leases import claim, holder, looks_held

HOLD = """
import sys, time
from echo_lm.orchestration.jobs.leases import claim
lease = claim(sys.argv[1])
print("held" if lease else "refused", flush=True)
time.sleep(60)
"""

RACE = """
import sys
from pathlib import Path
from echo_lm.orchestration.jobs.leases import claim
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    lease = claim(folder / f"{number}.lease")
    if lease:  # and never let go
        with open(folder / "won", "a") as won:
            won.write(f"{number}\\n")
print("done", flush=True)
sys.stdin.read()
"""


def start(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_one_holder_at_a_time_and_free_after_release(tmp_path):
    path = tmp_path / "folder" / "work.lease"
    with claim(path) as lease:
        assert claim(path) is None
        assert holder(path)["pid"] == os.getpid()
        assert not lease.lost
    assert holder(path) is None
    assert not path.exists()
    with claim(path):
        assert claim(tmp_path / "folder" / "other.lease").release() is None


def test_a_killed_holder_is_seen_at_once(tmp_path):
    path = tmp_path / "work.lease"
    process = start(HOLD, path)
    assert process.stdout.readline().strip() == "held"
    assert claim(path) is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    with claim(path) as lease:
        assert lease is not None


def test_a_silent_holder_of_another_machine_expires_and_learns_it(tmp_path):
    path = tmp_path / "work.lease"
    first = claim(path, heartbeat_seconds=0.2)
    record = json.loads(path.read_text())
    record["machine"] = "elsewhere"
    path.write_text(json.dumps(record))
    assert claim(path, expiry_seconds=60) is None
    second = None
    while second is None:  # its heartbeat may come between the two
        os.utime(path, (time.time() - 100,) * 2)
        second = claim(path, expiry_seconds=60)
    deadline = time.monotonic() + 10
    while not first.lost and time.monotonic() < deadline:
        time.sleep(0.05)
    assert first.lost
    first.release()
    assert holder(path)["owner"] == second.owner, "who lost a lease takes nothing away by releasing it"
    second.release()


def test_the_heartbeat_keeps_a_lease_for_as_long_as_it_is_held(tmp_path):
    path = tmp_path / "work.lease"
    with claim(path, heartbeat_seconds=0.05):
        os.utime(path, (time.time() - 100,) * 2)
        deadline = time.monotonic() + 30
        while time.time() - path.stat().st_mtime > 50 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert time.time() - path.stat().st_mtime < 50


def test_a_torn_file_holds_nothing(tmp_path):
    (tmp_path / "work.lease").write_text('{"owner": "a')
    with claim(tmp_path / "work.lease") as lease:
        assert lease is not None


def test_of_many_processes_exactly_one_gets_each_lease(tmp_path):
    """They start together, and none ends before all are through: what the dead held would be free."""
    processes = [start(RACE, tmp_path) for _ in range(4)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.stdout.readline() for process in processes] == ["done\n"] * 4
    for process in processes:
        process.communicate("")
    assert sorted(map(int, (tmp_path / "won").read_text().split())) == list(range(40))


def test_threads_of_one_process_exclude_each_other_too(tmp_path):
    won = []
    threads = [threading.Thread(target=lambda: won.append(claim(tmp_path / "work.lease"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([lease for lease in won if lease]) == 1
    next(lease for lease in won if lease).release()


def test_a_reader_sees_a_lease_by_its_age_and_writes_nothing(tmp_path):
    path = tmp_path / "job.lease"
    assert not looks_held(path)
    with claim(path):
        assert looks_held(path)
        before = sorted(tmp_path.iterdir())
        assert looks_held(path)
        assert sorted(tmp_path.iterdir()) == before
        os.utime(path, (time.time() - 3600,) * 2)
        assert not looks_held(path)
    assert not looks_held(path)
