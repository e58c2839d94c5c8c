"""Where the host's Python is while it drives a GPU: samples of all threads' stacks.

cProfile sees one thread, and PyTorch runs the backward pass in another.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

INTERVAL = 1e-3  # seconds
IDLE = ("threading.py", "selectors.py", "connection.py", "queue.py")  # threads that wait


def sample(work: Callable[[], object]) -> tuple[int, Counter, Counter]:
    """Run `work` and look at every thread each millisecond (less often where Python's lock is not given up).

    Returns:
        how many looks, and by function how many of them found it running itself and how many on the stack.
    """
    own, below, looks = Counter(), Counter(), 0
    done = threading.Event()

    def look() -> None:
        nonlocal looks
        me = threading.get_ident()
        while not done.wait(INTERVAL):
            looks += 1
            for thread, frame in sys._current_frames().items():
                names = _stack(frame)
                if thread != me and names and not names[0].startswith(IDLE):
                    own[names[0]] += 1
                    below.update(set(names))

    sampler = threading.Thread(target=look, daemon=True)
    sampler.start()
    try:
        work()
    finally:
        done.set()
        sampler.join()
    return looks, own, below


def report(work: Callable[[], object], rows: int = 30) -> None:
    """Print what `sample` finds."""
    started = time.perf_counter()
    looks, own, below = sample(work)
    print(f"Python, {looks} looks in {time.perf_counter() - started:.2f} s: share of looks, the function itself")
    for name, count in own.most_common(rows):
        print(f"{count / max(1, looks):7.1%}  {name}")
    print("share of looks, with what it calls")
    for name, count in below.most_common(2 * rows):
        print(f"{count / max(1, looks):7.1%}  {name}")


def _stack(frame: FrameType | None) -> list[str]:
    names = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{Path(code.co_filename).name}:{code.co_firstlineno} {code.co_name}")
        frame = frame.f_back
    return names
