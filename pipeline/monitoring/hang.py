"""Which ranks keep a worker group from its next step, by its heartbeats."""

from collections.abc import Iterable

from .heartbeat import HEARTBEAT_SECONDS, HeartbeatRecord


class HangDetector:
    """Finds hung ranks from what `read_heartbeats` returns at each call. Clocks of other machines do not matter.

    Args:
        hang_seconds: how long a worker group may make no step.
    """

    def __init__(self, hang_seconds: float):
        self._hang_seconds = hang_seconds
        self._worker_group = ""
        # By rank: its last heartbeat, when that came, and when its step was new, by the clock of `now`.
        self._seen: dict[int, tuple[HeartbeatRecord, float, float]] = {}

    def hung_ranks(self, heartbeats: Iterable[HeartbeatRecord], now: float) -> list[HeartbeatRecord]:
        """Return silent ranks, else ranks outside collectives, else those at the lowest step.

        The list is empty while any rank makes a step within `hang_seconds`, and until every rank has made its first.

        Args:
            now: seconds, by any clock that only goes forward.
        """
        heartbeats = list(heartbeats)
        if not heartbeats or heartbeats[0].worker_group != self._worker_group:  # one that was just started has none
            self._worker_group, self._seen = heartbeats[0].worker_group if heartbeats else "", {}
        for heartbeat in heartbeats:
            before, came, moved = self._seen.get(heartbeat.rank, (None, now, now))
            came = came if before and before.time == heartbeat.time else now
            moved = moved if before and before.step == heartbeat.step else now
            self._seen[heartbeat.rank] = heartbeat, came, moved
        ranks = list(self._seen.values())
        if not ranks or any(heartbeat.step is None for heartbeat, _, _ in ranks):
            return []
        if now - max(moved for _, _, moved in ranks) < self._hang_seconds:
            return []
        silence = max(3 * HEARTBEAT_SECONDS, self._hang_seconds / 2)
        silent = [heartbeat for heartbeat, came, _ in ranks if now - came > silence]
        computing = [heartbeat for heartbeat, _, _ in ranks if not heartbeat.waiting]
        lowest = min(heartbeat.step or 0 for heartbeat, _, _ in ranks)
        return silent or computing or [heartbeat for heartbeat, _, _ in ranks if heartbeat.step == lowest]
