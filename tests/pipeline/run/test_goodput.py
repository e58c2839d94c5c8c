"""What a run did with its time: every second of a made-up log is counted once."""

import pytest

from echo_lm.pipeline.run.goodput import Goodput


def step(number: int, time: float, *, seconds: float = 2.0, stall: float = 0.0) -> dict:
    speed = 100 / seconds
    return {"kind": "step", "step": number, "time": time, "tokens": 100 * number, "tokens_per_second": speed} | {
        "data_stall_seconds": stall
    }


def start(number: int, time: float) -> dict:
    return {"kind": "start", "step": number, "time": time, "tokens": 100 * number}


EVENTS = [
    start(0, 0),
    step(1, 10),  # eight seconds until the first step
    step(2, 12),
    {"kind": "checkpoint", "step": 2, "time": 12.5, "stall_seconds": 0.5},
    step(3, 14.5),
    start(2, 40),  # a crash: 25.5 seconds, and step 3 is repeated
    step(3, 45),  # three seconds until the first step
    {"kind": "evaluation", "time": 46, "step": 2, "seconds": 7.0},
    step(4, 47, stall=0.25),
    {"kind": "stop", "step": 4, "time": 48},
    start(4, 1000),  # a clean stop counts for nothing
    step(5, 1002),
    step(6, 1004),
    {"kind": "rollback", "step": 5, "time": 1004, "tokens": 500},
    step(6, 1006),
    {"kind": "finish", "step": 6, "time": 1006},
]


@pytest.mark.parametrize("together", [True, False])
def test_every_second_is_counted_once(together):
    goodput = Goodput()
    assert goodput.share is None
    for events in [EVENTS] if together else [[event] for event in EVENTS]:
        goodput.add(events)
    assert goodput.productive == pytest.approx(6 * 2 - 0.25)
    assert goodput.lost == pytest.approx(25.5 + 2 + 2)
    assert goodput.waiting == pytest.approx(8 + 0.5 + 3 + 0.25)
    assert goodput.evaluating == 7
    assert goodput.share == pytest.approx(11.75 / (11.75 + 29.5 + 11.75))


def test_the_last_steps_alone_can_be_taken_back_where_memory_is_bounded():
    goodput = Goodput(most_steps=3)
    goodput.add([start(0, 0), *(step(number, 2 * number) for number in range(1, 11)), start(5, 20)])
    assert (goodput.productive, goodput.lost) == (pytest.approx(14), pytest.approx(6))
    assert goodput.share == pytest.approx(14 / 20)
