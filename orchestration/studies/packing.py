"""Packing of cells on devices, longest first; the same rule predicts the hours of a study and places its cells."""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from ..jobs.devices import Devices


class PackedCell(NamedTuple):
    """A cell to be packed; `per_device` of its kind fit on one device side by side."""

    name: str
    seconds: float
    per_device: int

    @property
    def share(self) -> Fraction:
        """The share of a device; exact, so that three thirds make a whole."""
        return Fraction(1, self.per_device)


def longest_first(cells: Sequence[PackedCell]) -> list[PackedCell]:
    """The cells in the order of their start: longest first, so that no long one starts last."""
    return sorted(cells, key=lambda cell: (-cell.seconds, cell.name))


def makespan(cells: Sequence[PackedCell], devices: int) -> float:
    """Seconds until the last of `cells` ends on `devices` devices, started longest first wherever one fits."""
    free, waiting = Devices(devices), longest_first(cells)
    running: list[tuple[float, int, int, Fraction]] = []  # end, number (breaks ties), device, share
    now, started = 0.0, 0
    while waiting or running:
        for cell in list(waiting):
            device = free.reserve(cell.share)
            if device is not None:
                waiting.remove(cell)
                heapq.heappush(running, (now + cell.seconds, started, device, cell.share))
                started += 1
        now, _, device, share = heapq.heappop(running)
        free.release(device, share)
    return now
