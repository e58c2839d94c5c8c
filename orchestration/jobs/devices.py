"""Shares of the devices of a machine, for jobs that run side by side."""

from fractions import Fraction


class Devices:
    """The free shares of `count` devices."""

    def __init__(self, count: int):
        self._free = [Fraction(1)] * count

    def has_room(self, share: Fraction) -> bool:
        """Whether some device has `share` left."""
        return max(self._free) >= share

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
