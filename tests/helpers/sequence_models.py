"""Small models on segments of rows and on whole rows, for the processes of `sequence_workers.py`."""

import copy
import json
import sys
from contextlib import contextmanager
from functools import cache, partial

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from echo_lm.kernels import sequence
from echo_lm.kernels.sequence import SequenceContext
from echo_lm.kernels.ssd import sequence as ssd_sequence
from echo_lm.models import ModelConfig, build_model

DEVICE = "cpu"  # "cuda" in the processes that find out about GPUs
BATCH, LENGTH = 2, 48  # segments of 24, 16 and 12 tokens on 2, 3 and 4 ranks
SKA = dict(num_heads=2, rank=4, write_gate="sqrt-sigmoid", learn_gamma=True, gamma=1.2)
ECHO = ("mamba2", "ska", "mamba2", "ska")
STACKS = {
    "echo exact K=1": dict(layers=ECHO, ska=dict(SKA, power=1)),
    "echo exact K=0 lagged": dict(layers=ECHO, ska=dict(SKA, power=0, value_lag=True)),
    "echo exact K=1 token gate": dict(layers=ECHO, ska=dict(SKA, power=1, gate_input="token")),
    "echo exact blend": dict(
        layers=ECHO, ska=dict(SKA, power=2, blend=True, gate_input="token", gate_scale="table", context_heads=1)
    ),
    "echo exact late": dict(layers=ECHO, ska=dict(SKA, power=1, key_shift=1, value_shift=1)),
    "echo exact shifted, window": dict(
        layers=ECHO, ska=dict(SKA, power=0, key_shift=2, value_shift=1, gate_input="token", gate_window=3)
    ),
    "echo chunk K=1": dict(layers=ECHO, ska=dict(SKA, mode="chunk", chunk_size=4, power=1)),
    "echo chunk K=0 lagged": dict(layers=ECHO, ska=dict(SKA, mode="chunk", chunk_size=4, power=0, value_lag=True)),
    "mamba2": dict(layers=("mamba2",) * 3, feedforward=dict(kind="swiglu", width=24)),
    "hybrid": dict(layers=("mamba2", "attention") * 2, feedforward=dict(kind="swiglu", width=24)),
    "transformer": dict(layers=("attention",) * 3, feedforward=dict(kind="swiglu", width=24)),
}
# Edges of segments lie at 24 (2 ranks), 16, 32 (3) and 12, 24, 36 (4) of each row; the second row starts at 48.
BORDERS = {
    "none": [],
    "across edges": [5, 30, 68],
    "on edges": [12, 24, 48, 64, 72, 84],
    "length 1 at edges": [11, 12, 13, 23, 24, 25, 36, 48, 71, 72, 80, 81],
    "near edges": [9, 14, 17, 22, 26, 33, 48, 58, 63, 66, 70, 74, 85, 95],
    "many in one": [1, 2, 3, 5, 8, 38, 40, 43, 48, 85, 87, 88, 89],
}


def make_model(name, dtype):
    """A small model of that stack with every weight random. No two positions of a batch hold the same token and the
    head is untied: a row of the embedding's gradient is the gradient of one input. Below float64 the ridge is 1:
    a small one magnifies rounding, on whole rows too (there up to 3e-3 in these gradients), and would hide what is sent.
    """
    values = dict(
        vocab_size=BATCH * LENGTH,
        d_model=16,
        feedforward=dict(kind="koopman", width=24),
        mamba2=dict(d_state=6, headdim=8, ngroups=2),
        attention=dict(num_heads=2),
        tie_embeddings=False,
        allow_edge_ska=True,
    )
    values.update(STACKS[name])
    if dtype != torch.float64 and "ska" in values:
        values["ska"] = dict(values["ska"], ridge=1.0)
    return copy.deepcopy(_random_model(json.dumps(values), dtype)).to(DEVICE)


@cache  # a copy takes a tenth of the time
def _random_model(values, dtype):
    model = build_model(ModelConfig.from_dict(json.loads(values), where="a test's model")).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator).to(dtype)
            if weight.dim() >= 2 and not key.endswith("pairs"):
                weight.copy_(noise * weight[0].numel() ** -0.5)
            else:
                weight.add_(0.3 * noise)
    return model


def offsets(borders):
    return torch.tensor(sorted({0, BATCH * LENGTH, *borders}), dtype=torch.int32)


def batch():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randperm(BATCH * LENGTH, generator=generator).view(BATCH, LENGTH)
    weights = torch.randn(BATCH, LENGTH, BATCH * LENGTH, generator=generator, dtype=torch.float64)
    return tokens.to(DEVICE), weights.to(DEVICE)


def context_of(group, borders):
    return SequenceContext(group, dist.get_rank(group), dist.get_world_size(group), offsets(borders))


def on_whole_rows(name, borders, dtype, at=None, weights_in=None):
    """Logits and gradients without a context; of weights that are rounded to another precision first."""
    model = make_model(name, weights_in or dtype).to(dtype)
    tokens, weights = batch()
    logits = model(tokens, cu_seqlens=offsets(borders), logits_to_keep=at)
    (logits * (weights if at is None else weights[at]).to(dtype)).sum().backward()
    return [logits.detach().cpu(), *(weight.grad.cpu() for weight in model.parameters())]


def on_segments(name, borders, dtype, group, at=None):
    """The same from segments: logits gathered (not those `at` some positions), gradients summed."""
    model = make_model(name, dtype)
    context = context_of(group, borders)
    tokens, weights = (context.segment(t) for t in batch())
    if at is not None:
        at = context.segment(at)
        weights = weights[at]
    logits = model(tokens, context=context, logits_to_keep=at)
    (logits * weights.to(dtype)).sum().backward()
    logits = logits.detach().cpu()
    gradients = [weight.grad.cpu().to(torch.promote_types(dtype, torch.float32)) for weight in model.parameters()]
    summed = torch.cat([gradient.flatten() for gradient in gradients])  # one message in place of one a weight
    dist.all_reduce(summed, group=group)
    sizes = [gradient.numel() for gradient in gradients]
    gradients = [flat.view_as(gradient) for flat, gradient in zip(summed.split(sizes), gradients, strict=True)]
    if at is not None:
        return gradients
    gathered = [torch.empty_like(logits) for _ in range(context.world)]
    dist.all_gather(gathered, logits.contiguous(), group=group)
    return [torch.cat(gathered, 1), *gradients]


def worst(ours, whole):
    """The largest relative error of any tensor; rank 0 alone knows the whole rows."""
    if whole is not None:
        return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, whole, strict=True))


def only_rank_0(function, *arguments, **options):
    return function(*arguments, **options) if dist.get_rank() == 0 else None


@contextmanager
def replaced(module, name, value):
    old = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, old)


@contextmanager
def replaced_item(mapping, key, value):
    old = mapping[key]
    mapping[key] = value
    try:
        yield
    finally:
        mapping[key] = old


@contextmanager
def forgetting():
    """Models of Mamba-2 that forget within a few tokens, and segments of which only the tail is summed."""
    make = make_model

    def make_forgetful(*arguments):
        model = make(*arguments)
        with torch.no_grad():
            for block in model.blocks:
                block.mixer.dt_bias.fill_(1.0)
                block.mixer.A_log.fill_(1.8)
        return model

    with (
        replaced(sys.modules[__name__], "make_model", make_forgetful),
        replaced(ssd_sequence, "LONG", 1),
        replaced(ssd_sequence, "CHUNK", 4),
        replaced(ssd_sequence, "SPARE", 0),
    ):
        yield


def joined(tensors):
    """Logits, and gradients as one vector."""
    return tensors and [tensors[0], torch.cat([gradient.flatten() for gradient in tensors[1:]])]


@contextmanager
def checkpointing(compiled):
    """Models whose blocks are computed again in the backward pass."""
    make = make_model

    def make_checkpointed(*arguments):
        model = make(*arguments)
        for block in model.blocks:
            if compiled:  # into graphs that are not made faster
                block.forward = torch.compile(block.forward, backend="aot_eager")
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=sequence.kept_messages)
        return model

    with replaced(sys.modules[__name__], "make_model", make_checkpointed):
        yield
