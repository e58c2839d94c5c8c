"""The supervisor outside Ray: which failures it restarts, which it raises, and its messages."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.jobs.cluster import ClusterUnavailable, wait_for_cluster
from echo_lm.orchestration.launch import driver_process
from echo_lm.orchestration.launch.supervisor import supervise
from echo_lm.pipeline.monitoring.heartbeat import Heartbeat
from echo_lm.pipeline.run.events import read_events
from echo_lm.pipeline.run.folder import RunFolder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def start(run: RunFolder, config, function, on_progress=lambda: None) -> None:
    """`on_progress` is called whenever the supervisor reads the progress: at the start, and after each recorded failure."""

    def progress() -> int:
        on_progress()
        return len(list(run.path.glob("done-*")))

    supervise(run, config, function, (str(run.path),), address=None, progress=progress)


def recorded(run: RunFolder) -> list[tuple[str, str]]:
    events = read_events(run.events_file)
    return [(event["kind"], event.get("message") or event["reason"]) for event in events]


def lacks_ray(folder: str, on_cluster) -> None:
    raise ModuleNotFoundError("No module named 'ray'", name="ray")


def test_a_missing_package_is_said_at_once(run, smoke):
    with pytest.raises(UserError, match=r"^ray is not installed here: pip install 'echo-lm\[cluster\]'$"):
        start(run, smoke(), lacks_ray)
    assert [kind for kind, _ in recorded(run)] == ["attempt"]


def fails_at_length(folder: str, on_cluster) -> None:
    if not Path(folder, "done-0").exists():
        Path(folder, "done-0").touch()
        raise MemoryError("no memory\n" + "The node is low on memory. " + "Consider this and that. " * 100)


def test_a_failure_with_a_page_of_advice_is_named_in_one_line(run, smoke):
    start(run, smoke(), fails_at_length)
    (reason,) = {reason for _, reason in recorded(run) if "MemoryError" in str(reason)}
    assert reason.startswith("the driver failed (MemoryError: The node is low on memory. Consider this")
    assert reason.endswith(" ...)")
    assert len(reason) < 350


def dies_twice(folder: str, on_cluster) -> None:
    number = len(list(Path(folder).glob("done-*")))
    Path(folder, f"done-{number}").touch()
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_driver_that_dies_or_falls_silent_is_started_again(run, smoke, monkeypatch):
    def be_impatient_with_the_second() -> None:
        while not (run.path / "done-1").exists():
            time.sleep(0.05)
        monkeypatch.setattr(driver_process, "CONNECT_SECONDS", 1)

    def be_patient_with_the_third() -> None:
        if [kind for kind, _ in recorded(run)].count("lost") == 2:
            monkeypatch.setattr(driver_process, "CONNECT_SECONDS", 600)

    threading.Thread(target=be_impatient_with_the_second, daemon=True).start()
    start(run, smoke("run.max_restarts=1"), dies_twice, on_progress=be_patient_with_the_third)
    kinds = [kind for kind, _ in recorded(run)]
    assert kinds == ["attempt", "lost", "attempt", "lost", "attempt"]
    messages = [message for kind, message in recorded(run) if kind == "lost"]
    assert "killed by signal 9" in messages[0]
    assert "silent" in messages[1]


def fails(folder: str, on_cluster) -> None:
    raise ZeroDivisionError("of no use")


def test_a_driver_that_gets_nowhere_is_given_up_with_its_trace(run, smoke):
    with pytest.raises(UserError, match=r"again and again without getting on") as raised:
        start(run, smoke("run.max_restarts=1"), fails)
    assert "ZeroDivisionError: of no use" in str(raised.value)
    assert 'raise ZeroDivisionError("of no use")' in str(raised.value), "a traceback is our mistake, to be mended"


def finds_no_cluster(folder: str, on_cluster) -> None:
    Path(folder, f"tried-{len(list(Path(folder).glob('tried-*')))}").touch()
    if len(list(Path(folder).glob("tried-*"))) < 3:
        raise ClusterUnavailable("no Ray cluster answers")


def test_a_cluster_that_is_starting_is_tried_again_more_often_than_restarts_are_allowed(run, smoke):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        config = smoke("run.max_restarts=0")
        supervise(run, config, finds_no_cluster, (str(run.path),), address=address, progress=lambda: 0)
    assert [event["what"] for event in read_events(run.events_file) if event["kind"] == "lost"] == ["head"] * 2


def refuses(folder: str, on_cluster) -> None:
    raise UserError("no such suite")


def test_a_users_mistake_ends_it_at_once(run, smoke):
    with pytest.raises(UserError, match=r"^no such suite$"):
        start(run, smoke(), refuses)
    assert [kind for kind, _ in recorded(run)] == ["attempt"]


def test_a_cluster_that_is_away_is_waited_for_and_not_for_ever():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"no Ray cluster answers at {address}.*ray start --head"):
            wait_for_cluster(address, 1)
        started = time.monotonic()
        threading.Timer(1, server.listen).start()
        wait_for_cluster(address, 60)
        assert time.monotonic() - started > 0.5


def waits_to_be_stopped(folder: str, on_cluster) -> None:
    """A driver whose worker sends heartbeats, reads the request to stop, saves for two seconds, and leaves."""
    run = RunFolder(folder)
    Path(folder, "began").touch()
    with Heartbeat(run, 0, 1) as heartbeat:
        while not heartbeat.stop_reason:
            time.sleep(0.05)
        time.sleep(2)
    Path(folder, "saved").write_text(heartbeat.stop_reason)


def has_nothing_to_save(folder: str, on_cluster) -> None:
    """A driver that prepares data, with a process of its own that ignores every signal."""
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    process = subprocess.Popen([sys.executable, "-c", ignoring])
    Path(folder, "began").write_text(str(process.pid))
    time.sleep(3600)


def stop_when_begun(run: RunFolder, number: int) -> None:
    def send() -> None:
        while not (run.path / "began").exists():
            time.sleep(0.05)
        time.sleep(1)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_reaches_the_workers_and_nothing_is_started_again(run, smoke, number):
    stop_when_begun(run, number)
    arguments = (str(run.path),)
    reason = supervise(run, smoke(), waits_to_be_stopped, arguments, address=None, progress=lambda: 0)
    assert reason == signal.Signals(number).name == (run.path / "saved").read_text()
    assert [kind for kind, _ in recorded(run)] == ["attempt"]
    assert supervise(run, smoke(), lasts_a_moment, arguments, address=None, progress=lambda: 0) == "", "it is forgotten"


def lasts_a_moment(folder: str, on_cluster) -> None:
    with Heartbeat(RunFolder(folder), 0, 1) as heartbeat:
        time.sleep(1.5)
        assert not heartbeat.stop_reason


def test_a_driver_that_ends_by_itself_when_it_is_to_be_interrupted(run, smoke, monkeypatch):
    """The stop signal comes first, and the driver is gone when the supervisor looks at its workers' heartbeats once more."""
    monkeypatch.setattr(driver_process, "QUIET_SECONDS", -1.0)
    monkeypatch.setattr(driver_process, "POLL_SECONDS", 60.0)
    stop_when_begun(run, signal.SIGTERM)
    supervise(run, smoke(), ends_after_two_seconds, (str(run.path),), address=None, progress=lambda: 0)
    assert [kind for kind, _ in recorded(run)] == ["attempt"]


def ends_after_two_seconds(folder: str, on_cluster) -> None:
    Path(folder, "began").write_text(str(os.getpid()))
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(2)


def test_a_driver_without_workers_is_ended_with_all_that_it_started(run, smoke, monkeypatch):
    monkeypatch.setattr(driver_process, "QUIET_SECONDS", 2.0)
    stop_when_begun(run, signal.SIGTERM)
    started = time.monotonic()
    supervise(run, smoke(), has_nothing_to_save, (str(run.path),), address=None, progress=lambda: 0)
    assert time.monotonic() - started < 30
    assert not psutil.pid_exists(int((run.path / "began").read_text()))
