"""The time that a start of training takes, by phase, from the beginning of its process to the end of its first step."""

import os
import time
from typing import Any

import psutil

COMMAND_STARTED = "ECHO_LM_COMMAND_STARTED"
"""When the command that launches the ranks began, unix seconds."""


class StartupClock:
    """Measures the phases of a start, each from the end of the one before; the first from the beginning of this process.

    Attributes:
        phases: seconds by name. `command`: of the command, up to the first start of this process.
    """

    def __init__(self) -> None:
        self._last = psutil.Process().create_time()
        self.phases: dict[str, float] = {}
        began = os.environ.get(COMMAND_STARTED)
        if began and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            self.phases["command"] = round(self._last - float(began), 2)

    def end(self, phase: str) -> None:
        """Say that a phase has ended now."""
        now = time.time()
        self.phases[phase] = round(self.phases.get(phase, 0.0) + now - self._last, 2)
        self._last = now

    def finish(self, waited: float) -> dict[str, Any]:
        """End the first step, of which `waited` seconds were a phase of their own, `kernels`; returns the fields of the event."""
        self.end("first_step")
        first_step = self.phases.pop("first_step")
        self.phases |= {"kernels": round(waited, 2), "first_step": round(first_step - waited, 2)}
        return {"phases": self.phases, "total_seconds": round(sum(self.phases.values()), 2)}
