"""Log-probabilities of given continuations of given contexts, as multiple-choice tasks need them."""

from collections.abc import Sequence

import torch
from torch import nn


@torch.inference_mode()
def continuation_scores(
    model: nn.Module,
    requests: Sequence[tuple[list[int], list[int]]],
    *,
    batch_tokens: int,
    device: torch.device | str = "cpu",
) -> list[tuple[float, bool]]:
    """Log-probability of each continuation, and whether greedy decoding would give it.

    Requests are packed one after the other with document borders between them, so nothing is padded and nothing leaks.

    Args:
        model: called as `model(tokens, cu_seqlens=..., logits_to_keep=...)`.
        requests: token ids of a context, at least one, and of its continuation.
        batch_tokens: tokens of one forward pass; a longer request makes a pass of its own.

    Returns:
        nats and greediness, in the order of the requests; an empty continuation has 0 and True.

    Raises:
        ValueError: an empty context.
        FloatingPointError: a logit is not finite.
    """
    found: list[tuple[float, bool]] = []
    packed: list[tuple[list[int], list[int]]] = []
    tokens = 0
    for context, continuation in requests:
        if not context:
            raise ValueError("an empty context predicts nothing: begin with the document separator")
        if packed and tokens + len(context) + len(continuation) > batch_tokens:
            found += _packed_scores(model, packed, device)
            packed, tokens = [], 0
        packed.append((context, continuation))
        tokens += len(context) + len(continuation)
    return found + (_packed_scores(model, packed, device) if packed else [])


def _packed_scores(
    model: nn.Module, requests: list[tuple[list[int], list[int]]], device: torch.device | str
) -> list[tuple[float, bool]]:
    rows = [(context + continuation)[:-1] or context for context, continuation in requests]
    borders = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    tokens = torch.tensor([token for row in rows for token in row], device=device)[None]
    at = torch.zeros(tokens.shape, dtype=torch.bool, device=device)
    for (_, continuation), end in zip(requests, borders[1:].tolist(), strict=True):
        at[0, end - len(continuation) : end] = True
    labels = torch.tensor([token for _, continuation in requests for token in continuation], device=device)
    if len(labels) == 0:
        return [(0.0, True)] * len(requests)
    logits = model(tokens, cu_seqlens=borders.to(device=device, dtype=torch.int32), logits_to_keep=at).float()
    if not torch.isfinite(logits).all():
        raise FloatingPointError("continuations")
    nats = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0].cpu()
    greedy = (logits.argmax(-1) == labels).cpu()
    sizes = [len(continuation) for _, continuation in requests]
    parts = zip(nats.split(sizes), greedy.split(sizes), strict=True)
    return [(float(some.sum()), bool(all_of.all())) for some, all_of in parts]
