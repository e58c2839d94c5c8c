"""Processes that share rows, mostly four, started by `run` with what `main` takes.

Every case compares a model on segments with the same model on whole rows; rank 0 writes what it finds.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from echo_lm.kernels import sequence
from echo_lm.kernels.predicted_sizes import PredictedSizes
from echo_lm.kernels.sequence import SequenceContext
from echo_lm.kernels.ska import attention, ska_attention
from echo_lm.kernels.ska import sequence as ska_sequence
from echo_lm.kernels.ssd import sequence as ssd_sequence
from echo_lm.models import build_model, preset
from echo_lm.models.mixers import delay
from tests.helpers import sequence_models, warm
from tests.helpers.collectives import counted
from tests.helpers.sequence_models import (
    BATCH,
    BORDERS,
    LENGTH,
    STACKS,
    batch,
    checkpointing,
    context_of,
    forgetting,
    joined,
    on_segments,
    on_whole_rows,
    only_rank_0,
    replaced,
    replaced_item,
    worst,
)

ROOT = Path(__file__).parents[2]
WORLD = 4

# Every pattern of borders for one stack of each kind of layer, three of them for the variants.
SAMPLE = [
    (name, pattern)
    for name in STACKS
    for pattern in BORDERS
    if name in ("echo exact K=1", "echo chunk K=1", "mamba2", "hybrid")
    or pattern in ("none", "length 1 at edges", "near edges")
]


def parity(groups, report):
    """On three and four ranks; `every_parity` takes every pattern and world."""
    compare_with_whole_rows({world: groups[world] for world in (3, 4)}, SAMPLE, report)


def every_parity(groups, report):
    compare_with_whole_rows(groups, [(name, pattern) for name in STACKS for pattern in BORDERS], report)


def compare_with_whole_rows(groups, cases, report):
    for name, pattern in cases:
        whole = only_rank_0(on_whole_rows, name, BORDERS[pattern], torch.float64)
        report[name, pattern] = [
            worst(on_segments(name, BORDERS[pattern], torch.float64, group), whole)
            for world, group in groups.items()
            if dist.get_rank() < world
        ]


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
        model = sequence_models.make_model("mamba2", torch.float64)
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
        model = sequence_models.make_model(name, torch.float32)
        for length in lengths:
            tokens = torch.arange(length // WORLD)[None] % (BATCH * LENGTH)
            context = SequenceContext(groups[WORLD], dist.get_rank(), WORLD, torch.tensor([0, length // 3, length]))
            with counted() as calls:
                model(tokens, context=context).sum().backward()
            report["calls", name, length] = calls


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
        world = 2 if compiled else WORLD  # each rank compiles for itself, for seconds
        if dist.get_rank() >= world:
            continue
        shallow = STACKS[name] | dict(layers=STACKS[name]["layers"][:2])
        with replaced_item(STACKS, name, shallow):
            plain = on_segments(name, BORDERS["across edges"], dtype, groups[world])
            products.clear()
            with checkpointing(compiled), replaced(ska_sequence, "sum_of_outer_products", noted), counted() as calls:
                again = on_segments(name, BORDERS["across edges"], dtype, groups[world])
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
    model = sequence_models.make_model("echo exact K=1", torch.float32)
    maximum = build_model(preset("paper-1m-sequence-max"))
    shifted = build_model(preset("paper-1m-l2", ska={"key_shift": 2, "mode": "exact"}, layers=["ska"] * 4, mamba2=None))
    gated = build_model(preset("echo-1m", ska={"gate_input": "token", "gate_window": 3})).blocks[1].mixer
    for trial, call in {
        "prefix": lambda: ska_attention(x, x, x, mode="prefix", context=context),
        "grid": lambda: ska_attention(x, x, x, mode="chunk", chunk_size=4, context=context),
        "unequal": lambda: ska_attention(*[x[:, : 6 - rank]] * 3, context=context),
        "short": lambda: model(torch.zeros(1, 3, dtype=torch.int64), context=context),
        "borders": lambda: model(torch.zeros(2, 12, dtype=torch.int64), context=context_of(group, []), cu_seqlens=[]),
        "sequence-max": lambda: maximum(torch.zeros(1, 64, dtype=torch.int64), context=context),
        "shifted": lambda: shifted(torch.zeros(1, 1, dtype=torch.int64), context=context),
        "token": lambda: gated(torch.zeros(1, 6, 128), context=context),
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
    "cuda": [every_parity, forgetful, predicting, checkpointed],
    "interpreter": [in_kernels],
    "every parity": [every_parity],
}


def run(folder, cases="cpu"):
    """Start the processes, wait for them, and give what they found.

    Raises:
        RuntimeError: one of them failed in the interpreter.
        torch.multiprocessing.ProcessRaisedException: one of the others failed.
    """
    arguments = str(folder / "store"), str(folder / "report"), cases
    if cases == "interpreter":
        # A new process: Triton interprets kernels that are defined where the environment says so.
        command = [sys.executable, "-W", "ignore", "-m", "tests.helpers.sequence_workers", *arguments]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, cwd=ROOT, timeout=400, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
    elif cases == "cuda":  # a fork cannot use CUDA after its parent did
        mp.spawn(main, (*arguments, WORLD), WORLD)
    else:
        warm.spawn(main, (*arguments, WORLD), WORLD)
    return torch.load(folder / "report")


def main(rank, store, results, cases, processes):
    torch.set_num_threads(1)
    sequence_models.DEVICE = "cuda" if cases == "cuda" else "cpu"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    groups = {world: dist.new_group(list(range(world))) for world in range(1, processes + 1)}
    report = {}
    for case in CASES[cases]:
        case(groups, report)
    dist.barrier()
    if rank == 0:
        torch.save(report, results)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(main, (*sys.argv[1:], 2), nprocs=2, start_method="fork")
