"""Python's garbage collection, run by all ranks between the same steps.

A full collection traverses all objects of PyTorch and its compiler, some 700,000 (0.56 s on the machine of the tests), whenever
enough new objects were allocated. All ranks wait for the one that collects, so the stalls grow with the number of ranks.
DeepSpeed's `disable_python_gc` would switch automatic collection off as well, but each of its own collections is a full one.
"""

import gc
import time
from types import TracebackType

QUICK = 5e-3  # seconds: after a slower collection its survivors are frozen


class GarbageCollection:
    """Context in which garbage is collected only at calls of `collect`.

    The first call is a full collection; its survivors are frozen, so that later calls take a fraction of a millisecond. The
    survivors of a slow call, such as those of a recompiled block, are frozen as well.
    """

    def __enter__(self) -> "GarbageCollection":
        self._before = gc.isenabled()
        gc.disable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        gc.unfreeze()
        if self._before:
            gc.enable()

    def collect(self) -> None:
        """Free objects that only reference cycles keep alive."""
        started = time.perf_counter()
        gc.collect()
        if time.perf_counter() - started > QUICK:
            gc.freeze()
