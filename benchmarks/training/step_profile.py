"""Where the time of a training step goes: by kernel, by operator, and where the host's Python is meanwhile.

Python is looked at by sampling the stacks of all threads: cProfile sees one, and PyTorch runs the backward pass in another.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.training.case import Case

INTERVAL = 1e-3  # seconds
IDLE = ("threading.py", "selectors.py", "connection.py", "queue.py")  # threads that wait


def print_profile(case: "Case", step_tokens: int) -> None:
    """Print where the time of a step of `step_tokens` tokens goes."""
    import torch
    from torch.profiler import ProfilerActivity

    plain = median(case.step()[0] for _ in range(3))
    on_gpu = case.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities) as found:
        case.step()
    events = found.key_averages()
    print(f"a step: {plain * 1e3:.1f} ms, {step_tokens / plain:,.0f} tokens/s (not profiled)")
    host = sum(event.self_cpu_time_total for event in events) / 1e3
    if on_gpu:
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(event.self_device_time_total for event in kernels) / 1e3
        print(f"kernels: {busy:.1f} ms in {sum(event.count for event in kernels):,} launches; ", end="")
        print(f"the device waits {max(0.0, plain * 1e3 - busy):.1f} ms")
        for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:40]:
            share = event.self_device_time_total / 1e3
            print(f"{share:9.2f} ms {share / busy:6.1%} {event.count:6} x  {event.key[:110]}")
    print(f"the host: {host:.1f} ms in all operators (profiled: more than without)")
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:15]:
        print(f"{event.self_cpu_time_total / 1e3:9.2f} ms {event.count:6} x  {event.key[:110]}")
    print_python(lambda: [case.step() for _ in range(3)])


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


def print_python(work: Callable[[], object], rows: int = 30) -> None:
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
