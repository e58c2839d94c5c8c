"""Packing of cells on devices, longest first; the same rule predicts the hours of a study and places its cells."""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class Job(NamedTuple):
    """A cell to be packed; `per_device` of its kind fit on one device side by side."""

    name: str
    seconds: float
    per_device: int

    @property
    def share(self) -> Fraction:
        """The share of a device; exact, so that three thirds make a whole."""
        return Fraction(1, self.per_device)


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """The jobs in the order of their start: longest first, so that no long one starts last."""
    return sorted(jobs, key=lambda job: (-job.seconds, job.name))


class Devices:
    """The free shares of `count` devices."""

    def __init__(self, count: int):
        self._free = [Fraction(1)] * count

    def reserve(self, share: Fraction) -> int | None:
        """Reserve `share` of the emptiest device and return its number, or None if no device has that much left."""
        device = max(range(len(self._free)), key=self._free.__getitem__)
        if self._free[device] < share:
            return None
        self._free[device] -= share
        return device

    def release(self, device: int, share: Fraction) -> None:
        """End a reservation."""
        self._free[device] += share


def makespan(jobs: Sequence[Job], devices: int) -> float:
    """Seconds until the last of `jobs` ends on `devices` devices, started longest first wherever one fits."""
    free, waiting = Devices(devices), longest_first(jobs)
    running: list[tuple[float, int, int, Fraction]] = []  # end, number (breaks ties), device, share
    now, started = 0.0, 0
    while waiting or running:
        for job in list(waiting):
            device = free.reserve(job.share)
            if device is not None:
                waiting.remove(job)
                heapq.heappush(running, (now + job.seconds, started, device, job.share))
                started += 1
        now, _, device, share = heapq.heappop(running)
        free.release(device, share)
    return now
