"""Pauses grow to a minute; failures are counted from the last progress on."""

from echo_lm.models.common.retries import RestartLimit, pause_seconds


def test_pauses_double_up_to_a_minute():
    assert [pause_seconds(failures) for failures in (1, 2, 3, 6, 7, 50)] == [1, 2, 4, 32, 60, 60]


def test_the_first_restart_is_immediate_and_progress_begins_the_count_anew():
    checkpoint = ["step_1"]
    limit = RestartLimit(2, lambda: checkpoint[0])
    assert [limit.after_failure() for _ in range(3)] == [0.0, 1.0, None]
    checkpoint[0] = "step_2"
    assert [limit.after_failure() for _ in range(3)] == [0.0, 1.0, None]
    assert not limit.made_progress()
    checkpoint[0] = "step_3"
    assert limit.made_progress()
    assert limit.failures_in_a_row == 0


def test_without_restarts_the_first_failure_is_the_last():
    assert RestartLimit(0, lambda: 0).after_failure() is None
