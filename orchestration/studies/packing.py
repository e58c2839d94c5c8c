"""Cells on devices: each takes a share of one, the longest first. The same rule predicts the hours and places the work."""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class Job(NamedTuple):
    """`per_device` of its kind fit on one device side by side."""

    name: str
    seconds: float
    per_device: int

    @property
    def share(self) -> Fraction:
        """Of a device; exact, so that three thirds are a whole."""
        return Fraction(1, self.per_device)


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """The order in which jobs are started: long ones first, so that no long one is left for the end."""
    return sorted(jobs, key=lambda job: (-job.seconds, job.name))


class Devices:
    """What is free on each of `count` devices."""

    def __init__(self, count: int):
        self._free = [Fraction(1)] * count

    def take(self, share: Fraction) -> int | None:
        """Reserve `share` of the emptiest device and return its number, or None if no device has so much left."""
        device = max(range(len(self._free)), key=self._free.__getitem__)
        if self._free[device] < share:
            return None
        self._free[device] -= share
        return device

    def give_back(self, device: int, share: Fraction) -> None:
        """End a reservation."""
        self._free[device] += share


def makespan(jobs: Sequence[Job], devices: int) -> float:
    """Seconds until the last of `jobs` ends on `devices` devices, started longest first wherever one fits."""
    free, waiting = Devices(devices), longest_first(jobs)
    running: list[tuple[float, int, int, Fraction]] = []  # end, number (breaks ties), device, share
    now, started = 0.0, 0
    while waiting or running:
        for job in list(waiting):
            device = free.take(job.share)
            if device is not None:
                waiting.remove(job)
                heapq.heappush(running, (now + job.seconds, started, device, job.share))
                started += 1
        now, _, device, share = heapq.heappop(running)
        free.give_back(device, share)
    return now
