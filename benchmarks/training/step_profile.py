"""Profile of a training step: time by kernel, by operator, and by Python function of the host.

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
    """Print the profile of a step of `step_tokens` tokens."""
    import torch
    from torch.profiler import ProfilerActivity

    plain = median(case.step()[0] for _ in range(3))
    on_gpu = case.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities) as profile:
        case.step()
    events = profile.key_averages()
    print(f"a step: {plain * 1e3:.1f} ms, {step_tokens / plain:,.0f} tokens/s (not profiled)")
    host = sum(event.self_cpu_time_total for event in events) / 1e3
    if on_gpu:
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        kernel_ms = sum(event.self_device_time_total for event in kernels) / 1e3
        print(f"kernels: {kernel_ms:.1f} ms in {sum(event.count for event in kernels):,} launches; ", end="")
        print(f"the device waits {max(0.0, plain * 1e3 - kernel_ms):.1f} ms")
        for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:40]:
            share = event.self_device_time_total / 1e3
            print(f"{share:9.2f} ms {share / kernel_ms:6.1%} {event.count:6} x  {event.key[:110]}")
    print(f"the host: {host:.1f} ms in all operators (profiled: more than without)")
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:15]:
        print(f"{event.self_cpu_time_total / 1e3:9.2f} ms {event.count:6} x  {event.key[:110]}")
    print_python(lambda: [case.step() for _ in range(3)])


def sample(work: Callable[[], object]) -> tuple[int, Counter, Counter]:
    """Run `work` and sample the stacks of all threads each millisecond (less often while Python's lock is held).

    Returns:
        the number of samples, and by function the numbers of samples at the top of a stack and anywhere in it.
    """
    own, cumulative, samples = Counter(), Counter(), 0
    finished = threading.Event()

    def take_samples() -> None:
        nonlocal samples
        sampler_id = threading.get_ident()
        while not finished.wait(INTERVAL):
            samples += 1
            for thread, frame in sys._current_frames().items():
                names = _stack(frame)
                if thread != sampler_id and names and not names[0].startswith(IDLE):
                    own[names[0]] += 1
                    cumulative.update(set(names))

    sampler = threading.Thread(target=take_samples, daemon=True)
    sampler.start()
    try:
        work()
    finally:
        finished.set()
        sampler.join()
    return samples, own, cumulative


def print_python(work: Callable[[], object], rows: int = 30) -> None:
    """Print the samples of `sample`."""
    started = time.perf_counter()
    samples, own, cumulative = sample(work)
    print(f"Python, {samples} samples in {time.perf_counter() - started:.2f} s: share of samples, the function itself")
    for name, count in own.most_common(rows):
        print(f"{count / max(1, samples):7.1%}  {name}")
    print("share of samples, with its calls")
    for name, count in cumulative.most_common(2 * rows):
        print(f"{count / max(1, samples):7.1%}  {name}")


def _stack(frame: FrameType | None) -> list[str]:
    names = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{Path(code.co_filename).name}:{code.co_firstlineno} {code.co_name}")
        frame = frame.f_back
    return names
