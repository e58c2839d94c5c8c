"""Run by the tests as `python -m tests.helpers.sequence_workers rank store results cases`: four processes that share rows.

Every case compares a model on segments with the same model on whole rows; rank 0 writes what it finds.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from echo_lm.kernels import sequence
from echo_lm.kernels.predicted_sizes import PredictedSizes
from echo_lm.kernels.sequence import SequenceContext
from echo_lm.kernels.ska import attention, ska_attention
from echo_lm.kernels.ska import sequence as ska_sequence
from echo_lm.kernels.ssd import sequence as ssd_sequence
from echo_lm.models import ModelConfig, build_model, preset
from echo_lm.models.mixers import delay
from tests.helpers.collectives import counted

ROOT = Path(__file__).parents[2]
WORLD = 4
DEVICE = "cuda" if __name__ == "__main__" and sys.argv[4] == "cuda" else "cpu"
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
    model = build_model(ModelConfig.from_dict(values, where=name)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator).to(dtype)
            if weight.dim() >= 2 and not key.endswith("pairs"):
                weight.copy_(noise * weight[0].numel() ** -0.5)
            else:
                weight.add_(0.3 * noise)
    return model.to(DEVICE)


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
    for gradient in gradients:
        dist.all_reduce(gradient, group=group)
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


def parity(groups, report):
    for name in STACKS:
        for pattern, borders in BORDERS.items():
            whole = only_rank_0(on_whole_rows, name, borders, torch.float64)
            report[name, pattern] = [
                worst(on_segments(name, borders, torch.float64, group), whole)
                for world, group in groups.items()
                if dist.get_rank() < world
            ]


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


def forgetful(groups, report):
    """Mamba-2 that forgets within a few tokens sums a segment's tail alone: parity, and where the tails began."""
    begun, begin_of_tail = [], ssd_sequence._begin_of_tail

    def noted(*arguments):
        begun.append(begin_of_tail(*arguments))
        return begun[-1]

    with forgetting(), replaced(ssd_sequence, "_begin_of_tail", noted):
        for pattern in ("none", "across edges"):
            whole = only_rank_0(on_whole_rows, "mamba2", BORDERS[pattern], torch.float64)
            if dist.get_rank() < 2:
                ours = on_segments("mamba2", BORDERS[pattern], torch.float64, groups[2])
                report["forgetful", pattern] = worst(ours, whole)
    report["tails"] = [int(begin) for begin in begun]


def predicting(groups, report):
    """One model twice on the same rows, then remembering for longer: whether tails were predicted, whether the predictions were
    said to be right, and how far the logits are from those without predictions."""
    if dist.get_rank() >= 2:
        return
    predicted_sizes, passes = PredictedSizes(), []
    with forgetting(), torch.no_grad():
        model = make_model("mamba2", torch.float64)
        tokens = context_of(groups[2], []).segment(batch()[0])
        for less in (0.0, 0.0, 4.0):
            for block in model.blocks:
                block.mixer.A_log -= less
            plain = model(tokens, context=context_of(groups[2], []))
            predicted = model(tokens, context=replace(context_of(groups[2], []), predicted_sizes=predicted_sizes))
            error = torch.tensor(worst([predicted], [plain]))
            dist.all_reduce(error, dist.ReduceOp.MAX, groups[2])  # the second segment shows what the first one left out
            passes.append((predicted_sizes.pending, predicted_sizes.verify(), error.item()))
    report["predicted_sizes"] = passes


def joined(tensors):
    """Logits, and gradients as one vector."""
    return tensors and [tensors[0], torch.cat([gradient.flatten() for gradient in tensors[1:]])]


def half_precision(groups, report):
    """Errors of the gradient, as one vector, against float64: of whole rows in bf16, and of segments in bf16."""
    for name in ("echo exact K=1", "mamba2"):
        borders, half = BORDERS["across edges"], torch.bfloat16
        exact = only_rank_0(on_whole_rows, name, borders, torch.float64, weights_in=half)
        whole = only_rank_0(on_whole_rows, name, borders, half)
        ours = on_segments(name, borders, half, groups[WORLD])
        report["bf16", name] = exact and [worst(joined(found)[1:], joined(exact)[1:]) for found in (whole, ours)]


def single_precision(groups, report):
    """Gradients as one vector: rounding alone is 1e-5 of those that nearly cancel. `parity` looks at each."""
    for name in STACKS:
        whole = only_rank_0(on_whole_rows, name, BORDERS["across edges"], torch.float32)
        ours = on_segments(name, BORDERS["across edges"], torch.float32, groups[WORLD])
        report["fp32", name] = worst(joined(ours), joined(whole))


def in_kernels(groups, report):
    """Segments and whole rows in Triton's kernels, as vectors, in fp32; and how often SKA's were called for the segments.

    One layer of each kind: the interpreter takes seconds for one."""
    calls, fused = [], attention.IMPLEMENTATIONS["triton"]
    shallow = STACKS["echo exact K=1"] | dict(layers=("mamba2", "ska"))

    def noted(*arguments, **options):
        calls.append(1)
        return fused(*arguments, **options)

    arguments = "echo exact K=1", BORDERS["across edges"], torch.float32
    with replaced_item(STACKS, "echo exact K=1", shallow):
        whole = only_rank_0(on_whole_rows, *arguments)
        with replaced_item(attention.IMPLEMENTATIONS, "triton", noted):
            ours = on_segments(*arguments, groups[2]) if dist.get_rank() < 2 else None
    report["kernels"] = worst(joined(ours), joined(whole))
    report["calls of kernels"] = len(calls)


def no_labels_on_a_rank(groups, report):
    """The ranks run the same collectives even where one has nothing to learn from."""
    at = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.5
    at[:, 12:24] = False
    for name in ("echo exact K=1", "hybrid"):
        whole = only_rank_0(on_whole_rows, name, BORDERS["across edges"], torch.float64, at)
        ours = on_segments(name, BORDERS["across edges"], torch.float64, groups[WORLD], at)
        report["at", name] = worst(ours, None if whole is None else whole[1:])


def sabotage(groups, report):
    """Errors of the output when what travels is wrong. Each must be seen by `parity`."""
    entering_state, all_gather, gather_segments = sequence.entering_state, sequence.all_gather, sequence.gather_segments

    def swap_two_ranks(*arguments):
        def swapped(x, context):
            return all_gather(x, context)[[1, 0, *range(2, context.world)]]

        with replaced(sequence, "all_gather", swapped):
            return entering_state(*arguments)

    def drop(part):
        def dropped(summary, *rest):
            return entering_state([x * (i != part) for i, x in enumerate(summary)], *rest)

        return dropped

    def no_rows(x, context):
        return gather_segments(x, context) * 0

    for trial, module, broken, name in (
        ("swapped summaries", ska_sequence, swap_two_ranks, "echo exact K=1"),
        ("no seam pair", ska_sequence, drop(3), "echo exact K=1"),
        ("no lagged seam pair", ska_sequence, drop(5), "echo exact K=0 lagged"),
        ("no last key", ska_sequence, drop(4), "echo exact K=1"),
        ("no rows before", delay, no_rows, "echo exact late"),
        ("swapped states", ssd_sequence, swap_two_ranks, "mamba2"),
        ("no overlap", ssd_sequence, drop(0), "mamba2"),
        ("no decay", ssd_sequence, drop(2), "mamba2"),
        ("no first tokens", ssd_sequence, drop(4), "mamba2"),
    ):
        whole = only_rank_0(on_whole_rows, name, [], torch.float64)
        with replaced(module, "gather_segments" if module is delay else "entering_state", broken):
            ours = on_segments(name, [], torch.float64, groups[WORLD])
        report["broken", trial] = worst(ours[:1], None if whole is None else whole[:1])


def traffic(groups, report):
    """Calls of one forward and backward pass, one row over four ranks."""
    for name, lengths in (
        ("echo exact K=1", (1024, 65_536)),  # Mamba-2 sums tails alone in segments of 16,384
        ("echo exact K=0 lagged", (1024, 4096)),
        ("echo chunk K=1", (1024, 4096)),
        ("hybrid", (64, 256)),
    ):
        model = make_model(name, torch.float32)
        for length in lengths:
            tokens = torch.arange(length // WORLD)[None] % (BATCH * LENGTH)
            context = SequenceContext(groups[WORLD], dist.get_rank(), WORLD, torch.tensor([0, length // 3, length]))
            with counted() as calls:
                model(tokens, context=context).sum().backward()
            report["calls", name, length] = calls


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


CHECKPOINTED = {  # with how far they may be from blocks that are computed once
    "echo exact K=1": 1e-12,
    "echo exact K=0 lagged": 1e-6,
    "hybrid": 1e-12,
    "echo chunk K=1": 1e-6,
    "echo exact late": 1e-12,
}


def checkpointed(groups, report):
    """Blocks that are computed again: parity; the collectives; how often SKA's sums were summed up, in three products."""
    products, summed = [], ska_sequence.sum_of_outer_products

    def noted(*arguments):
        products.append(1)
        return summed(*arguments)

    for name, dtype, compiled in (
        ("echo exact K=1", torch.float64, False),
        ("echo exact K=0 lagged", torch.bfloat16, False),
        ("hybrid", torch.float64, False),
        ("echo chunk K=1", torch.bfloat16, True),
        ("echo exact late", torch.float64, False),
    ):
        shallow = STACKS[name] | dict(layers=STACKS[name]["layers"][:2])
        with replaced_item(STACKS, name, shallow):
            plain = on_segments(name, BORDERS["across edges"], dtype, groups[WORLD])
            products.clear()
            with checkpointing(compiled), replaced(ska_sequence, "sum_of_outer_products", noted), counted() as calls:
                again = on_segments(name, BORDERS["across edges"], dtype, groups[WORLD])
        report["checkpointed", name] = worst(again, plain), [call for call, _ in calls], len(products)


def single_tokens(groups, report):
    """Four segments of one token, SKA alone: nothing pairs inside of one."""
    q, k, v = (
        torch.randn(1, 4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    context = SequenceContext(groups[WORLD], dist.get_rank(), WORLD)
    ours = ska_attention(*(context.segment(t) for t in (q, k, v)), mode="exact", context=context)
    gathered = [torch.empty_like(ours) for _ in range(WORLD)]
    dist.all_gather(gathered, ours.contiguous())
    report["single tokens"] = worst([torch.cat(gathered, 1)], [ska_attention(q, k, v, mode="exact")])


def refusals(groups, report):
    """What each bad argument is answered with; on every rank alike, so that none waits for another."""
    group, rank = groups[WORLD], dist.get_rank()
    context = SequenceContext(group, rank, WORLD)
    x = torch.ones(1, 6, 2, 3)
    model = make_model("echo exact K=1", torch.float32)
    maximum = build_model(preset("paper-1m-sequence-max"))
    shifted = build_model(preset("paper-1m-l2", ska={"key_shift": 2, "mode": "exact"}, layers=["ska"] * 4, mamba2=None))
    for trial, call in {
        "prefix": lambda: ska_attention(x, x, x, mode="prefix", context=context),
        "grid": lambda: ska_attention(x, x, x, mode="chunk", chunk_size=4, context=context),
        "unequal": lambda: ska_attention(*[x[:, : 6 - rank]] * 3, context=context),
        "short": lambda: model(torch.zeros(1, 3, dtype=torch.int64), context=context),
        "borders": lambda: model(torch.zeros(2, 12, dtype=torch.int64), context=context_of(group, []), cu_seqlens=[]),
        "sequence-max": lambda: maximum(torch.zeros(1, 64, dtype=torch.int64), context=context),
        "shifted": lambda: shifted(torch.zeros(1, 1, dtype=torch.int64), context=context),
        "rank": lambda: SequenceContext(group, (rank + 1) % WORLD, WORLD),
        "world": lambda: SequenceContext(group, rank, 5),
        "row": lambda: context_of(group, []).starts(BATCH, 13, x.device),
        "cut": lambda: context.segment(torch.zeros(1, 6)),
    }.items():
        try:
            call()
            report["refused", trial] = "taken"
        except Exception as error:
            report["refused", trial] = f"{type(error).__name__}: {error}"


CASES = {
    "cpu": [
        parity,
        forgetful,
        predicting,
        single_precision,
        half_precision,
        no_labels_on_a_rank,
        sabotage,
        traffic,
        checkpointed,
        single_tokens,
        refusals,
    ],
    "cuda": [parity, forgetful, predicting, checkpointed],
    "interpreter": [in_kernels],
}


def run(folder, cases="cpu"):
    """Start the processes, wait for them, and give what they found.

    Raises:
        RuntimeError: one of them failed.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.helpers.sequence_workers"]
    files = [str(folder / "store"), str(folder / "report"), cases]
    environment = os.environ | {"TRITON_INTERPRET": "1"} if cases == "interpreter" else None
    logs = [folder / f"rank-{rank}.log" for rank in range(WORLD)]
    processes = [
        subprocess.Popen([*command, str(rank), *files], stderr=log.open("w"), env=environment, cwd=ROOT)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise RuntimeError("\n".join(log.read_text() for log in logs))
    return torch.load(folder / "report")


def main(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    groups = {world: dist.new_group(list(range(world))) for world in range(1, WORLD + 1)}
    report = {}
    for case in CASES[sys.argv[4]]:
        case(groups, report)
    dist.barrier()
    if rank == 0:
        torch.save(report, results)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
