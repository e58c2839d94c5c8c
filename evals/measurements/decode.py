"""Speed and memory of decoding after contexts of any length: flat where the state is constant, growing with attention."""

import os
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from ...models import Cache, EchoLM, step

WARMUP = 3

T = TypeVar("T")


@torch.inference_mode()
def evaluate_decode(
    model: EchoLM,
    contexts: Sequence[int],
    *,
    tokens: int = 32,
    batch: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    on_context: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Decode `tokens` tokens of `batch` sequences after each context.

    A state of constant size is what it is after any context; attention gets keys and values of the context's length
    filled with random numbers, so that nothing has to be read first.

    Args:
        on_context: called when a context is done.

    Returns:
        a row a context: `context` (tokens), `batch`, `tokens_per_second` (all sequences together), `state_bytes` (of one
        sequence), `peak_bytes` (of tensors, at the worst moment: the weights, the states and what a step makes on its way).
    """
    rows = []
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    generator = torch.Generator().manual_seed(seed)
    shape = (WARMUP + tokens, batch)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
    on_gpu = torch.device(device).type == "cuda"

    def warm_up(context: int) -> Cache:
        cache = cache_after(model, context, batch)
        for at in range(WARMUP):
            _, cache = step(model, ids[at], cache)
        return cache

    for context in contexts:
        cache, peak = with_peak_bytes(lambda context=context: warm_up(context), device)
        if on_gpu:
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for at in range(WARMUP, len(ids)):
            _, cache = step(model, ids[at], cache)
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        rows.append(
            {
                "context": context,
                "batch": batch,
                "tokens_per_second": tokens * batch / seconds,
                "state_bytes": cache.nbytes() // batch,
                "peak_bytes": weights + peak,
            }
        )
        del cache
        on_context()
    return rows


def cache_after(model: EchoLM, context: int, batch: int) -> Cache:
    """A cache of the size that reading `context` tokens leaves, filled with arbitrary numbers."""
    like = model.embedding.weight[:0]
    return Cache(block.mixer.random_cache(batch, like, context) for block in model.blocks)


def with_peak_bytes(work: Callable[[], T], device: torch.device | str) -> tuple[T, int]:
    """Run `work`; return its result and the peak bytes of tensors it allocated beyond those that existed before.

    As PyTorch's own allocators count them: a process's resident memory says little, since freed memory stays with it.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise it prints when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = work()
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    # All allocations during `work`, and the frees of what was allocated in it, in order of time.
    events: list[Any] = record.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return result, max(accumulate((event.nbytes() for event in changes), initial=0))
