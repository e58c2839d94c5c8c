"""Python's garbage, collected by all ranks between the same steps.

A full collection looks at everything that PyTorch and its compiler have made, some 700,000 objects (0.56 s on the machine of the
tests), whenever enough new ones have been counted. All ranks wait for the one that is in it, so that they meet more of them the
more they are. DeepSpeed's `disable_python_gc` would switch it off as well, but each collection of its own would be a full one.
"""

import gc
import time
from types import TracebackType

QUICK = 5e-3  # seconds: a collection that takes longer has looked at much that stays


class GarbageCollection:
    """While it is entered Python collects where `collect` is called and nowhere else.

    The first call is a full collection; what is alive then is never looked at again, so that the later ones take a fraction of a
    millisecond. Whatever makes one slow, a block that was compiled anew, is left out of the next ones as well.
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
        """Free what only its own references keep alive."""
        started = time.perf_counter()
        gc.collect()
        if time.perf_counter() - started > QUICK:
            gc.freeze()
