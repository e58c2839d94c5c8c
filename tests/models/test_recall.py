"""Recall comes from SKA: Echo learns it in a minute on one CPU core, Mamba-2 alone does not."""

import pytest
import torch

from echo_lm.models import build_model, language_model_loss, parameter_groups, preset

# Two trainings of a minute or two on a free core, several times that on a busy machine.
pytestmark = pytest.mark.timeout(1800)

LAYERS = {"echo-1m": ("mamba2", "ska"), "mamba2-1m": ("mamba2", "mamba2")}
LENGTH = 64
VALUE, NOISE, SYS, END, QUERY, CALL, RESULT = 40, 72, 120, 121, 122, 123, 124  # keys are 0..39


def sample(rows, pairs, tool_trace, generator):
    """Rows that state `pairs` pairs, up front or scattered as tool calls, then ask for all of them in another order.

    Returns tokens, labels and loss mask, each `[rows, LENGTH]`.
    """
    keys = torch.rand(rows, 40, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(VALUE, NOISE, (rows, pairs), generator=generator)
    text = torch.randint(NOISE, SYS, (rows, LENGTH + 1), generator=generator)
    query_start = LENGTH + 1 - 3 * pairs
    if tool_trace:
        slots = torch.rand(rows, query_start // 4, generator=generator).argsort(1)[:, :pairs] * 4
        unit = torch.stack((torch.full_like(keys, CALL), keys, torch.full_like(keys, RESULT), values), 2)
        text.scatter_(1, (slots[..., None] + torch.arange(4)).flatten(1), unit.flatten(1))
    else:
        text[:, 0], text[:, 1 + 2 * pairs] = SYS, END
        text[:, 1 : 1 + 2 * pairs] = torch.stack((keys, values), 2).flatten(1)
    order = torch.rand(rows, pairs, generator=generator).argsort(1)
    key, value = keys.gather(1, order), values.gather(1, order)
    text[:, query_start:] = torch.stack((torch.full_like(key, QUERY), key, value), 2).flatten(1)
    mask = torch.zeros(rows, LENGTH)
    mask[:, query_start + 1 :: 3] = 1
    return text[:, :-1], text[:, 1:], mask


def batch(rows, pairs, generator):
    """Half system prompts, half tool traces."""
    halves = [sample(rows // 2, pairs, tool_trace, generator) for tool_trace in (False, True)]
    return [torch.cat(parts) for parts in zip(*halves, strict=True)]


def train(name, steps=400, *, rows=32, rate=1e-3):
    """Train from scratch on 1 to 8 pairs (all with eight takes several times as long), until eight are learned.

    Returns the model and how many steps it took.
    """
    model = build_model(preset(name, vocab_size=128, layers=LAYERS[name], feedforward={"width": 64}), seed=0)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20)
        tokens, labels, mask = batch(rows, (1, 2, 3, 4, 6, 8)[step % 6], generator)
        at = mask.bool()
        logits = model(tokens, logits_to_keep=at)
        total, count = language_model_loss(logits, labels[at], mask[at])
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 6 == 5 and (logits.argmax(-1) == labels[at]).float().mean() >= 0.98:
            break
    return model, step + 1


@torch.no_grad()
def accuracy(model):
    tokens, labels, mask = batch(128, 8, torch.Generator().manual_seed(99))
    at = mask.bool()
    return (model(tokens, logits_to_keep=at).argmax(-1) == labels[at]).float().mean().item()


@pytest.fixture(scope="module")
def trained():
    """Both arms, the second for as many steps as the first has needed."""
    echo, steps = train("echo-1m")
    return {"echo-1m": echo, "mamba2-1m": train("mamba2-1m", steps)[0]}


@pytest.fixture
def echo(trained):
    return trained["echo-1m"]


def test_echo_recalls_eight_pairs(echo):
    assert accuracy(echo) >= 0.9


def test_without_ska_the_same_weights_do_not(echo):
    weights_before = [block.mixer.out_proj.weight.clone() for block in echo.blocks if hasattr(block.mixer, "eta")]
    with torch.no_grad():
        for block in echo.blocks[1::2]:
            block.mixer.out_proj.weight.zero_()
        silent = accuracy(echo)
        for block, weight in zip(echo.blocks[1::2], weights_before, strict=True):
            block.mixer.out_proj.weight.copy_(weight)
    assert silent <= 0.5


def test_mamba2_does_not_in_as_many_steps(trained):
    assert accuracy(trained["mamba2-1m"]) < 0.5
