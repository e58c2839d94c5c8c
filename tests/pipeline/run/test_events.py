"""The event log: crash-proof for its writer, tolerant for its readers."""

import json
import math

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.run.events import EventLog, EventTail, read_events, steps


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
    path.write_text('{"kind": "start"}\nnonsense\n{"kind": "finish"}\n')
    with pytest.raises(UserError, match=r"events\.jsonl, line 2"):
        read_events(path)


def test_a_tail_returns_every_event_once(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.read() == []
    path.write_bytes(b'{"kind": "start"}\n{"kind": "st')
    assert [event["kind"] for event in tail.read()] == ["start"]
    assert tail.read() == []
    with open(path, "ab") as file:
        file.write(b'ep"}\n')
    assert [event["kind"] for event in tail.read()] == ["step"]
    assert tail.read() == []


def test_the_last_record_of_a_step_counts():
    events = [{"kind": "step", "step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0), (2, 2.1))]
    records = steps([{"kind": "start", "step": 0}, *events])
    assert [(event["step"], event["loss"]) for event in records] == [(1, 3.0), (2, 2.1), (3, 9.0)]
