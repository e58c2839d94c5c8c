"""The use of the machine: percentages, at most every ten seconds."""

import time

import torch

from echo_lm.pipeline.monitoring import machine
from echo_lm.pipeline.monitoring.machine import MachineMeter


def test_a_machine_is_measured_every_ten_seconds(monkeypatch):
    meter = MachineMeter(torch.device("cpu"))
    found = meter.measure()
    assert found.keys() == {"cpu_percent", "host_memory_percent", "process_gib"}
    assert 0 <= found["cpu_percent"] <= 100
    assert 0 < found["host_memory_percent"] < 100
    assert 0.01 < found["process_gib"] < 100
    assert meter.measure() == {}
    later = time.monotonic() + machine.EVERY_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert meter.measure().keys() == found.keys()
