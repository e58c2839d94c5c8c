"""Which ranks a worker group waits for when it makes no step, from the heartbeats of its ranks."""

from collections.abc import Iterable

from .heartbeat import BEAT_SECONDS, Beat


class HangWatch:
    """Says whom a gang waits for, from what `read_beats` returned at each call. Clocks of other machines do not matter."""

    def __init__(self, hang_seconds: float):
        self._hang = hang_seconds
        self._gang = ""
        self._seen: dict[int, tuple[Beat, float, float]] = {}  # last beat, when it came, when its step was new

    def stuck(self, beats: Iterable[Beat], now: float) -> list[Beat]:
        """Those that keep a gang from a step for `hang_seconds`; none while it moves, or before its first steps.

        Those that fell silent; if none did, those that are outside of a collective; if none is, those that are farthest behind.

        Args:
            now: by any clock that only goes forward, in seconds.
        """
        beats = list(beats)
        if not beats or beats[0].gang != self._gang:  # a gang that was just started has none
            self._gang, self._seen = beats[0].gang if beats else "", {}
        for beat in beats:
            before, came, moved = self._seen.get(beat.rank, (None, now, now))
            came = came if before and before.time == beat.time else now
            moved = moved if before and before.step == beat.step else now
            self._seen[beat.rank] = beat, came, moved
        found = list(self._seen.values())
        if not found or any(beat.step is None for beat, _, _ in found):
            return []
        if now - max(moved for _, _, moved in found) < self._hang:
            return []
        silent = [beat for beat, came, _ in found if now - came > max(3 * BEAT_SECONDS, self._hang / 2)]
        busy = [beat for beat, _, _ in found if not beat.waiting]
        last = min(beat.step or 0 for beat, _, _ in found)
        return silent or busy or [beat for beat, _, _ in found if beat.step == last]
