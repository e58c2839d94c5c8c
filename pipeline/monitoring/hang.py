"""Detection of hung ranks from the heartbeats of a worker group."""

from collections.abc import Iterable

from .heartbeat import HEARTBEAT_SECONDS, HeartbeatRecord


class HangDetector:
    """Finds hung ranks from successive results of `read_heartbeats`; independent of the clocks of other machines.

    Args:
        hang_seconds: time without a step of any rank after which a worker group counts as hung.
    """

    def __init__(self, hang_seconds: float):
        self._hang_seconds = hang_seconds
        self._worker_group = ""
        # By rank: its last heartbeat, when that arrived, and when its step last changed, by the clock of `now`.
        self._last_heartbeats: dict[int, tuple[HeartbeatRecord, float, float]] = {}

    def hung_ranks(self, heartbeats: Iterable[HeartbeatRecord], now: float) -> list[HeartbeatRecord]:
        """Return silent ranks, else ranks outside collectives, else those at the lowest step.

        The list is empty if any rank made a step within `hang_seconds`, and until every rank has made its first.

        Args:
            now: seconds of a monotonic clock.
        """
        heartbeats = list(heartbeats)
        if (
            not heartbeats or heartbeats[0].worker_group != self._worker_group
        ):  # a group that was just started has no heartbeats
            self._worker_group, self._last_heartbeats = heartbeats[0].worker_group if heartbeats else "", {}
        for heartbeat in heartbeats:
            previous, arrival, last_step_time = self._last_heartbeats.get(heartbeat.rank, (None, now, now))
            arrival = arrival if previous and previous.time == heartbeat.time else now
            last_step_time = last_step_time if previous and previous.step == heartbeat.step else now
            self._last_heartbeats[heartbeat.rank] = heartbeat, arrival, last_step_time
        ranks = list(self._last_heartbeats.values())
        if not ranks or any(heartbeat.step is None for heartbeat, _, _ in ranks):
            return []
        if now - max(last_step_time for _, _, last_step_time in ranks) < self._hang_seconds:
            return []
        silence = max(3 * HEARTBEAT_SECONDS, self._hang_seconds / 2)
        silent = [heartbeat for heartbeat, arrival, _ in ranks if now - arrival > silence]
        computing = [heartbeat for heartbeat, _, _ in ranks if not heartbeat.waiting]
        lowest = min(heartbeat.step or 0 for heartbeat, _, _ in ranks)
        return silent or computing or [heartbeat for heartbeat, _, _ in ranks if heartbeat.step == lowest]
