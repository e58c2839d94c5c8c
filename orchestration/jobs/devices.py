"""Shares of the devices of a machine, for jobs that run side by side."""

import math
from fractions import Fraction


class Devices:
    """Bookkeeping of the free shares of `count` devices."""

    def __init__(self, count: int):
        self._free = [Fraction(1)] * count

    def has_room(self, share: Fraction) -> bool:
        """Whether there is room for `share`: at most 1 on some device, or so many whole devices."""
        return len(self._emptiest(share)) > 0

    def reserve(self, share: Fraction) -> tuple[int, ...] | None:
        """Reserve `share` of the emptiest device, or so many whole devices, and return their numbers; None without room."""
        devices = self._emptiest(share)
        for device in devices:
            self._free[device] -= share / len(devices)
        return devices or None

    def release(self, devices: tuple[int, ...], share: Fraction) -> None:
        """End a reservation."""
        for device in devices:
            self._free[device] += share / len(devices)

    def _emptiest(self, share: Fraction) -> tuple[int, ...]:
        """The devices that `share` would be taken from; none without room."""
        count = max(1, math.ceil(share))
        emptiest = sorted(range(len(self._free)), key=lambda device: -self._free[device])[:count]
        room = len(emptiest) == count and self._free[emptiest[-1]] >= share / count
        return tuple(emptiest) if room else ()
