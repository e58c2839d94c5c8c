"""Speed and memory of decoding after contexts of any length: flat where the state is constant, growing with attention."""

import time
from pathlib import Path
from typing import Any

import psutil
import torch

from ..models import Cache, EchoLM, step
from ..models.mixers.attention import AttentionCache
from .config import DecodeProtocol

WARMUP = 3


@torch.inference_mode()
def evaluate_decode(
    model: EchoLM, protocol: DecodeProtocol, *, device: torch.device | str = "cpu", seed: int = 0
) -> list[dict[str, Any]]:
    """Decode `protocol.tokens` tokens of `protocol.batch` sequences after each context.

    A state of constant size is what it is after any context; attention gets keys and values of the context's length
    filled with random numbers, so that nothing has to be read first.

    Returns:
        a row a context: `context` (tokens), `batch`, `tokens_per_second` (all sequences together), `state_bytes` (of one
        sequence), `peak_bytes` (of the device; on a CPU what the process grew by, None where the system does not tell).
    """
    rows = []
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (WARMUP + protocol.tokens, protocol.batch), generator=generator)
    tokens = tokens.to(device)
    on_gpu = torch.device(device).type == "cuda"
    for context in protocol.contexts:
        before = _start_peak(on_gpu, device)
        cache = cache_after(model, context, protocol.batch)
        for at in range(WARMUP):
            _, cache = step(model, tokens[at], cache)
        if on_gpu:
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for at in range(WARMUP, len(tokens)):
            _, cache = step(model, tokens[at], cache)
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        rows.append(
            {
                "context": context,
                "batch": protocol.batch,
                "tokens_per_second": protocol.tokens * protocol.batch / seconds,
                "state_bytes": cache.nbytes() // protocol.batch,
                "peak_bytes": _peak(on_gpu, device, before),
            }
        )
        del cache
    return rows


def cache_after(model: EchoLM, context: int, batch: int) -> Cache:
    """A cache of the size that reading `context` tokens leaves; its numbers are not those of any text."""
    like = model.embedding.weight[:0]
    cache = Cache(block.mixer.empty_cache(batch, like) for block in model.blocks)
    for layer, entry in enumerate(cache):
        if isinstance(entry, AttentionCache):
            shape = (batch, entry.k.shape[1], context, entry.k.shape[3])
            real = torch.ones(batch, context, dtype=torch.bool, device=like.device)
            keys, values = (torch.randn(shape, dtype=like.dtype, device=like.device) for _ in range(2))
            cache[layer] = AttentionCache(keys, values, real, entry.position + context)
    return cache


def _start_peak(on_gpu: bool, device: torch.device | str) -> int:
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    except OSError:
        return 0
    return psutil.Process().memory_info().rss


def _peak(on_gpu: bool, device: torch.device | str, before: int) -> int | None:
    if on_gpu:
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    high = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return max(0, int(high.split()[1]) * 1024 - before) if high and before else None
