"""Packing of cells on devices, longest first, by one rule that both predicts a study's hours and places its cells."""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from ..jobs.devices import Devices


class PackedCell(NamedTuple):
    """A cell to be packed; `per_device` of its kind fit on one device side by side, or it takes several `devices`.

    Attributes:
        trunk, trunk_seconds: it can start so long after the trunk of that name has; None if it depends on no other.
    """

    name: str
    seconds: float
    per_device: int
    trunk: str | None = None
    trunk_seconds: float = 0.0
    devices: int = 1

    @property
    def share(self) -> Fraction:
        """The devices, or the share of one; exact, so that three thirds make a whole."""
        return Fraction(self.devices, self.per_device)


def longest_first(cells: Sequence[PackedCell]) -> list[PackedCell]:
    """The cells in the order of their start: longest first, so that no long one starts last, and trunks before what needs them.

    Those on several devices come before others, which would take every device that becomes free.
    """
    return sorted(cells, key=lambda cell: (cell.trunk is not None, -cell.devices, -cell.seconds, cell.name))


def makespan(cells: Sequence[PackedCell], devices: int) -> float:
    """Seconds until the last of `cells` ends on `devices` devices, started longest first wherever one fits.

    A cell whose trunk is not among `cells` can start at once.
    """
    free, waiting = Devices(devices), longest_first(cells)
    running: list[tuple[float, int, tuple[int, ...], Fraction]] = []  # end, number (breaks ties), devices, share
    begun: dict[str | None, float] = dict.fromkeys((cell.name for cell in cells), math.inf)  # when each has started
    now, started = 0.0, 0
    while waiting or running:
        ready = {cell.name: begun.get(cell.trunk, -math.inf) + cell.trunk_seconds for cell in waiting}
        for cell in list(waiting):
            devices_of_cell = free.reserve(cell.share) if ready[cell.name] <= now else None
            if devices_of_cell is not None:
                waiting.remove(cell)
                begun[cell.name] = now
                heapq.heappush(running, (now + cell.seconds, started, devices_of_cell, cell.share))
                started += 1
        soon = [begun[cell.trunk] + cell.trunk_seconds for cell in waiting if cell.trunk in begun]
        checkpoint = min((time for time in soon if time > now), default=math.inf)
        if checkpoint < running[0][0]:
            now = checkpoint
        else:
            now, _, released, share = heapq.heappop(running)
            free.release(released, share)
    return now
