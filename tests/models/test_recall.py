"""Recall comes from SKA: Echo learns it in a minute on a CPU, and not without SKA."""

import torch

from echo_lm.models import build_model, language_model_loss, parameter_groups, preset

PAIRS, LENGTH = 8, 64
VALUE, NOISE, SYS, END, QUERY, CALL, RESULT = 40, 72, 120, 121, 122, 123, 124  # keys are 0..39


def sample(rows, tool_trace, generator):
    """Rows that state eight pairs, up front or scattered as tool calls, and then ask for all of them in another order.

    Returns tokens, labels and loss mask, each `[rows, LENGTH]`.
    """
    keys = torch.rand(rows, 40, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.randint(VALUE, NOISE, (rows, PAIRS), generator=generator)
    text = torch.randint(NOISE, SYS, (rows, LENGTH + 1), generator=generator)
    asked = LENGTH + 1 - 3 * PAIRS
    if tool_trace:
        slots = torch.rand(rows, asked // 4, generator=generator).argsort(1)[:, :PAIRS] * 4
        unit = torch.stack((torch.full_like(keys, CALL), keys, torch.full_like(keys, RESULT), values), 2)
        text.scatter_(1, (slots[..., None] + torch.arange(4)).flatten(1), unit.flatten(1))
    else:
        text[:, 0], text[:, 1 + 2 * PAIRS] = SYS, END
        text[:, 1 : 1 + 2 * PAIRS] = torch.stack((keys, values), 2).flatten(1)
    order = torch.rand(rows, PAIRS, generator=generator).argsort(1)
    key, value = keys.gather(1, order), values.gather(1, order)
    text[:, asked:] = torch.stack((torch.full_like(key, QUERY), key, value), 2).flatten(1)
    mask = torch.zeros(rows, LENGTH)
    mask[:, asked + 1 :: 3] = 1
    return text[:, :-1], text[:, 1:], mask


def batch(rows, generator):
    halves = [sample(rows // 2, tool_trace, generator) for tool_trace in (False, True)]
    return [torch.cat(parts) for parts in zip(*halves, strict=True)]


def train(name, *, steps, rows=32, rate=2e-3, enough=1.1):
    """Train from scratch, until `enough` of the last batch's answers are right."""
    model = build_model(preset(name, vocab_size=128), seed=0)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20)
        tokens, labels, mask = batch(rows, generator)
        at = mask.bool()
        logits = model(tokens, at=at)
        total, count = language_model_loss(logits, labels[at], mask[at])
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (logits.argmax(-1) == labels[at]).float().mean() >= enough:
            break
    return model


@torch.no_grad()
def accuracy(model):
    tokens, labels, mask = batch(128, torch.Generator().manual_seed(99))
    at = mask.bool()
    return (model(tokens, at=at).argmax(-1) == labels[at]).float().mean().item()
