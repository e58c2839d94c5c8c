"""The event log: crash-proof for its writer, tolerant for its readers."""

import json
import math
import os

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.run.events import EventLog, EventReader, last_events, read_events, steps, stopped_at


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "run" / "events.jsonl"
    with EventLog(path) as log:
        log.write("start", step=0)
        log.write("step", time=5.0, step=1, loss=2.5)
        assert [event["kind"] for event in read_events(path)] == ["start", "step"], "flushed while open"
    assert read_events(path)[1] == {"kind": "step", "time": 5.0, "step": 1, "loss": 2.5}
    assert read_events(path)[0]["time"] > 1e9


def test_numbers_that_json_lacks_become_null(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.write("step", step=1, loss=math.nan, nested={"norms": [math.inf, 1.0]})
    event = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert event["loss"] is None
    assert event["nested"] == {"norms": [None, 1.0]}


def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next_writer(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "start", "time": 1, "step": 0}\n{"kind": "step", "ti')
    assert [event["kind"] for event in read_events(path)] == ["start"]
    with EventLog(path) as log:
        log.write("step", step=1)
    assert [event["kind"] for event in read_events(path)] == ["start", "step"]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "start", "time": 1}\nnonsense\n{"kind": "finish", "time": 2}\n')
    with pytest.raises(UserError, match=r"events\.jsonl, line 2"):
        read_events(path)


def test_a_reader_returns_every_event_of_both_logs_once(tmp_path):
    training, supervision = EventLog(tmp_path / "events.jsonl"), EventLog(tmp_path / "supervision.jsonl")
    reader = EventReader.of_run(tmp_path)
    assert reader.read() == []
    supervision.write("attempt", time=1.0)
    training.write("start", time=2.0)
    supervision.write("lost", time=3.0)
    assert [event["kind"] for event in reader.read()] == ["attempt", "start", "lost"]
    assert (reader.read(), reader.restarted) == ([], False)
    training.write("finish", time=4.0)
    assert [event["kind"] for event in reader.read()] == ["finish"]
    assert reader.restarted is False


def test_an_event_that_is_half_written_waits_for_its_end(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    path.write_bytes(b'{"kind": "start", "time": 1}\n{"kind": "st')
    assert [event["kind"] for event in reader.read()] == ["start"]
    assert reader.read() == []
    with open(path, "ab") as file:
        file.write(b'ep", "time": 2, "step": 1}\n')
    assert [event["kind"] for event in reader.read()] == ["step"]
    with open(path, "ab") as file:
        file.write(b'{"kind": "st')
    assert reader.read() == []
    with EventLog(path) as log:  # a new process cuts the torn line off
        log.write("start", time=3.0)
    assert [event["kind"] for event in reader.read()] == ["start"]
    assert reader.restarted is False, "what was cut off was never read"


def replaced_by_a_longer(path):
    path.write_text("".join(f'{{"kind": "step", "step": 1, "time": {time}.5}}\n' for time in range(9)))
    return 9


def shortened(path):
    path.write_text('{"kind": "step", "step": 1, "time": 1}\n')
    return 1


def removed(path):
    path.unlink()
    return 0


def removed_with_its_folder(path):
    path.unlink()
    path.parent.rmdir()
    return 0


@pytest.mark.parametrize("change", [replaced_by_a_longer, shortened, removed, removed_with_its_folder])
def test_a_log_that_was_replaced_is_read_from_its_first_line(tmp_path, change):
    path = tmp_path / "run" / "events.jsonl"
    with EventLog(path) as log:
        for time in range(1, 4):
            log.write("step", time=time, step=time)
    reader = EventReader.of_run(path.parent)
    assert len(reader.read()) == 3
    events = change(path)
    assert (len(reader.read()), reader.restarted) == (events, True)
    assert (reader.read(), reader.restarted) == ([], False)
    with EventLog(path) as log:
        log.write("finish", time=99.0)
    assert ([event["kind"] for event in reader.read()], reader.restarted) == (["finish"], False)


def test_a_reader_goes_on_once_a_damaged_line_was_removed(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "start", "time": 1}\n')
    reader, tolerant = EventReader(path), EventReader(path, skip_damaged=True)
    assert len(reader.read()) == 1
    with open(path, "a") as file:
        file.write('nonsense\n[1]\n{"kind": "step"}\n{"kind": "step", "step": 1, "time": 2}\n')
    assert [event["time"] for event in tolerant.read()] == [1, 2]
    for _ in range(2):
        with pytest.raises(UserError, match=r"events\.jsonl, line 2"):
            reader.read()
    path.write_text('{"kind": "start", "time": 1}\n{"kind": "step", "step": 1, "time": 2}\n')
    assert ([event["time"] for event in reader.read()], reader.restarted) == ([2], False)
    assert (len(tolerant.read()), tolerant.restarted) == (2, True), "it had read on beyond the damaged line"


def test_only_what_was_appended_is_read(tmp_path, monkeypatch):
    """10,000 events are parsed once, not at every call."""
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        for step in range(10_000):
            log.write("step", time=step, step=step)
    reader = EventReader(path)
    reader.read()
    parsed = []
    monkeypatch.setattr("echo_lm.pipeline.run.events._parse_event", lambda line: parsed.append(line))
    reader.read()
    assert parsed == []


def test_a_look_at_a_log_reads_no_more_than_it_may(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        for step in range(1, 1001):
            log.write("step", time=step, step=step)
        log.write("warning", time=1001.0, message="x" * 9000)  # longer than a look
        log.write("step", time=1002.0, step=1001)
    reader, found, looks = EventReader(path, skip_damaged=True), [], 0
    while not looks or reader.unread:
        events = reader.read(4096)
        assert len(events) < 200
        found, looks = found + events, looks + 1
    assert [event["step"] for event in found] == list(range(1, 1002))
    assert (looks > 10, reader.restarted, reader.damage.count("is not an event")) == (True, False, 1)
    tail = EventReader(path)
    tail.start_at_end(200)
    assert [event["step"] for event in tail.read()] == [1001]


ODD = [
    b"[" * 100_000,
    b'{"kind": "step", "time": 1e300, "step": 1}',
    b'{"kind": "step", "time": 2, "step": "7"}',
    b'{"kind": "step", "time": 2, "step": null}',
    b'{"kind": "rollback", "time": 2, "step": 1e300}',
    b'{"kind": ["step"], "time": 2, "step": 1}',
    b'{"kind": "step", "time": true, "step": 1}',
    b'{"kind": "step", "time": NaN, "step": 1}',
]


def test_what_only_resembles_an_event_is_none(tmp_path):
    path = tmp_path / "events.jsonl"
    good = b'{"kind": "step", "time": 3, "step": 1, "loss": "abc", "grad_norm": 1e300, "mfu": 0.5, "tokens": NaN}'
    path.write_bytes(b"\n".join([*ODD, good, b""]))
    reader = EventReader(path, skip_damaged=True)
    nothing = {"loss": None, "grad_norm": None, "tokens": None}
    assert reader.read() == [{"kind": "step", "time": 3, "step": 1, "mfu": 0.5, **nothing}]
    assert "line 1 is not an event and 7 more" in reader.damage
    for line in ODD:
        path.write_bytes(line + b"\n")
        with pytest.raises(UserError, match="line 1 is not an event"):
            read_events(path)


def test_a_pipe_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "events.jsonl")
    assert EventReader.of_run(tmp_path).read() == []
    assert last_events(tmp_path / "events.jsonl", bool) == []


def test_the_last_events_are_read_from_the_end(tmp_path):
    path = tmp_path / "events.jsonl"
    assert last_events(path, bool) == []
    with EventLog(path) as log:
        log.write("start", time=0.0)
        for step in range(1, 3000):
            log.write("step", time=step, step=step)
    with open(path, "ab") as file:
        file.write(b'{"kind": "st')
    events = last_events(path, lambda events: len(events) >= 3)
    assert (len(events) < 200, events[-1]["step"]) == (True, 2999)
    assert last_events(path, lambda events: any(event["kind"] == "start" for event in events)) == read_events(path)


def test_the_last_record_of_a_step_counts():
    events = [{"kind": "step", "step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0), (2, 2.1))]
    records = steps([{"kind": "start", "step": 0}, *events])
    assert [(event["step"], event["loss"]) for event in records] == [(1, 3.0), (2, 2.1), (3, 9.0)]


def test_events_on_a_full_disk_follow_when_there_is_space(tmp_path):
    """The log's descriptor is that of Linux's ever-full device for a while."""
    log = EventLog(tmp_path / "events.jsonl")
    log.write("step", step=1)
    descriptor = log._file.fileno()
    disk = os.dup(descriptor)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    for step in range(2, 100):
        log.write("step", step=step, loss=1.0)
    os.dup2(disk, descriptor)
    log.write("step", step=100)
    log.close()
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")] == list(range(1, 101))
    log = EventLog(tmp_path / "events.jsonl")
    os.dup2(full, log._file.fileno())
    log.write("step", step=101)
    log.close()  # what cannot be written at the end is lost, and does not hide why the run ended
    os.close(full)
    os.close(disk)


def test_the_step_at_which_training_left(tmp_path):
    path = tmp_path / "events.jsonl"
    assert stopped_at(path) is None
    with EventLog(path) as log:
        log.write("start", step=0)
        for step in range(1, 200):
            log.write("step", step=step)
        assert stopped_at(path) is None
        log.write("stop", step=199)
        log.write("checkpoint", step=199)
        assert stopped_at(path) == 199
        log.write("start", step=199)
        assert stopped_at(path) is None
        log.write("finish", step=300)
        assert stopped_at(path) == 300
