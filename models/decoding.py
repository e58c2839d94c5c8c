"""Generation: prefill, single decoding steps and sampling, with a state of constant size except in attention layers.

Parallel forward, prefill and steps compute one function: prefill returns the state that steps would have built, and a
step's logits are those that the parallel forward gives at that position.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .common.errors import UserError
from .model import EchoLM

# Tokens of a prompt worked at once: bounds memory whatever the prompt's length; a multiple of any chunk grid in use.
SEGMENT = 1024


class Cache(list):
    """The decoding state of a model, one entry per layer."""

    def nbytes(self) -> int:
        """Bytes of the states of all sequences in the batch."""
        return sum(t.nbytes for t in _tensors(self))

    def clone(self) -> "Cache":
        """A copy from which another continuation can be decoded, since `step` updates the entries of SKA layers in place."""
        return copy.deepcopy(self)


@torch.no_grad()
def prefill(
    model: EchoLM, tokens: Tensor, lengths: Tensor | None = None, *, segment: int = SEGMENT
) -> tuple[Tensor, Cache]:
    """Read prompts and return the logits of the next token with the decoding state.

    Args:
        tokens: int64 `[B, T]`; rows may end in padding, whose values do not matter.
        lengths: int64 `[B]`, tokens of each row, 1 to T; default: all.
        segment: tokens worked at once, a multiple of the chunk size of chunk-causal layers.

    Returns:
        Logits `[B, vocab_size]` of the token after each row, and the cache to go on from.

    Raises:
        ValueError: lengths or segment are out of range.
    """
    batch, length = tokens.shape
    if lengths is None:
        lengths = torch.full((batch,), length, device=tokens.device)
    if length == 0 or bool((lengths < 1).any()) or bool((lengths > length).any()):
        raise ValueError(f"lengths must lie between 1 and {length}, the width of tokens")
    for block in model.blocks:
        segment = block.mixer.prefill_segment(segment, length)
    like = model.embedding.weight[:0]
    cache = Cache(block.mixer.init_cache(batch, like) for block in model.blocks)
    last = like.new_zeros(batch, model.config.d_model)
    position = torch.arange(length, device=tokens.device)
    for first in range(0, length, segment):
        part = slice(first, first + segment)
        x, token = model.embed(tokens[:, part])
        for i, block in enumerate(model.blocks):
            x, cache[i] = block.extend(x, cache[i], position[part] < lengths[:, None], token)
        ends = position[part] == lengths[:, None] - 1
        last += torch.where(ends[..., None], x, 0).sum(1)
    return model.logits(last), cache


@torch.no_grad()
def step(model: EchoLM, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """Decode one token per row: int64 `[B]` -> logits `[B, vocab_size]` of the next, and the new cache.

    SKA's states are updated in place, so the old cache is spent: `Cache.clone` first to branch.
    """
    x, token = model.embed(tokens)
    new = Cache()
    for block, old in zip(model.blocks, cache, strict=True):
        x, entry = block.step(x, old, token)
        new.append(entry)
    return model.logits(x), new


@torch.no_grad()
def generate(
    model: EchoLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Continue a batch of prompts of any lengths.

    Args:
        prompts: token ids, at least one a prompt.
        temperature: 0 takes the most likely token.
        top_k: sample among the k most likely tokens.
        top_p: sample among the fewest tokens whose probabilities reach p.
        stop_token: ends its row; it is the last token returned of that row.
        seed: of the private generator.

    Returns:
        The new tokens of each prompt, without the prompt.

    Raises:
        UserError: a prompt is empty or holds a token outside the vocabulary, or a number is out of range.
    """
    _check_request(model, prompts, temperature, top_k, top_p)
    if max_new_tokens < 1:
        return [[] for _ in prompts]
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    padded = [[*p, *[0] * (int(lengths.max()) - len(p))] for p in prompts]
    logits, cache = prefill(model, torch.tensor(padded, device=device), lengths)
    results: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for count in range(max_new_tokens):
        chosen = sample(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        for row, token in enumerate(chosen.tolist()):
            if row in running:
                results[row].append(token)
                if token == stop_token:
                    running.discard(row)
        if not running or count == max_new_tokens - 1:
            break
        logits, cache = step(model, chosen, cache)
    return results


def sample(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> Tensor:
    """Draw a token from each row of logits `[B, V]`: int64 `[B]`."""
    if temperature == 0:
        return logits.argmax(-1)
    ranked, order = (logits.float() / temperature).sort(-1, descending=True)
    probabilities = ranked.softmax(-1)
    if top_k is not None:
        probabilities[:, top_k:] = 0
    if top_p is not None:
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        # Keep a token if those before it do not yet reach p: the most likely one always stays.
        probabilities[probabilities.cumsum(-1) - probabilities >= top_p] = 0
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return order.gather(1, drawn).squeeze(1)


def _check_request(model, prompts, temperature, top_k, top_p) -> None:
    vocabulary = model.config.vocab_size
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {row} is empty: give it at least one token")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise UserError(f"prompt {row} holds a token outside {model.config.name}'s vocabulary of {vocabulary}")
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise UserError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: temperature must be at least 0, top_k at "
            "least 1, top_p above 0 and at most 1"
        )


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
