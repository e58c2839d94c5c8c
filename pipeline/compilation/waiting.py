"""The wait of a training for kernels that are being compiled: each is waited for at its first launch."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...kernels.available import TRITON
from ...kernels.compilation import before_compilation, watch_late_kernels
from ..stop_signal import StopSignal
from .beside import KernelCompilation, log_of

POLL_SECONDS = 0.05
REPORT_SECONDS = 5.0
MOST_SECONDS = 480  # of one wait, below the ten minutes that ranks wait for each other


class AwaitedKernels:
    """Lets launches of this rank wait for the process that compiles the kernels of its node, and records how it goes.

    torch.compile thus makes its code of the first blocks while kernels of the others are compiled. Where there is no such process,
    or it has ended, Triton compiles a missing kernel at its launch, as ever. Make one after ranks have met in a collective: by then
    the first rank of each node has started its process.

    Attributes:
        waited: seconds so far.
    """

    def __init__(
        self,
        run_path: Path,
        compilation: KernelCompilation | None,
        record_event: Callable[..., None],
        stop: StopSignal,
        *,
        step: int,
        on_gpu: bool,
    ):
        self._log, self._compilation, self._record, self._stop = log_of(run_path), compilation, record_event, stop
        self._step = step
        self._names: dict[str, str] | None = None  # by key
        self._done: dict[str, dict[str, Any]] = {}
        self._seconds: float | None = None if self._log.exists() else 0.0
        self._read_bytes, self._recorded, self.waited = 0, self._seconds is not None, 0.0
        self._late = watch_late_kernels() if on_gpu and TRITON else []
        if not self._recorded and TRITON:
            before_compilation(self.wait_for)

    def wait_for(self, key: str) -> None:
        """Wait until the kernel is compiled, if it is one of those that the process compiles."""
        begun = reported = time.monotonic()
        while self._is_coming(key):
            now = time.monotonic()
            if self._compilation and (self._stop.received or now - begun > MOST_SECONDS):
                self._compilation.stop()
            if self._names is not None and now - reported >= REPORT_SECONDS:
                self._event("compile", **self._counts())
                reported = now
            time.sleep(POLL_SECONDS)
        self.waited += time.monotonic() - begun

    def record(self, step: int) -> None:
        """Record what was compiled, once the process has ended, and kernels that were missing all the same; after each step."""
        self._step = step
        if self._late:
            self._event("compile", at_launch=self._late.copy())
            self._late.clear()
        if self._recorded:
            return
        self._read()
        if self._seconds is None:
            return
        self._recorded = True
        for key, result in self._done.items():
            if result["error"]:
                message = (
                    f"a kernel could not be compiled before its launch: {(self._names or {})[key]}: {result['error']}"
                )
                self._event("warning", message=message)
        if self._names is None or len(self._done) < len(self._names):
            known = "" if self._names is None else f" after {len(self._done)} of {len(self._names)} kernels"
            problem = f"the compilation beside training ended{known}, see the log of this rank"
            self._event("warning", message=f"{problem}: the others are compiled at their launch")
        if self._names is not None:
            self._event("compile", **self._counts(), seconds=self._seconds, waited_seconds=round(self.waited, 2))

    def _is_coming(self, key: str) -> bool:
        """Whether the process is going to compile the kernel, or has not said yet whether it is."""
        self._read()
        if self._seconds is not None or key in self._done:
            return False
        return self._names is None or key in self._names

    def _read(self) -> None:
        """Read what the process has written since the last time."""
        if self._seconds is not None:
            return
        try:
            with open(self._log, "rb") as log:
                log.seek(self._read_bytes)
                data = log.read()
        except OSError:  # nothing to wait for without it
            self._seconds = 0.0
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # of a process that was killed
                continue
            if "kernels" in entry:
                self._names = entry["kernels"]
            elif "key" in entry:
                self._done[entry["key"]] = entry
            else:
                self._seconds = entry["seconds"]
                if TRITON:
                    before_compilation(None)  # no launch need ask any more

    def _event(self, kind: str, **fields: Any) -> None:
        self._record(kind, step=self._step, **fields)

    def _counts(self) -> dict[str, int]:
        compiled = sum(not result["was_there"] and not result["error"] for result in self._done.values())
        return {"kernels": len(self._names or ()), "done": len(self._done), "compiled": compiled}
