"""One rank of `multigpu.py`: runs all cases in one process group; rank 0 writes the rows.

Started by `multigpu.py` as `python multigpu_worker.py CASES.json ROWS.jsonl`, with RANK, WORLD_SIZE, LOCAL_RANK and MASTER_* set.
"""

import gc
import json
import os
import sys
import time
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
import torch.distributed as dist

from benchmarks.training.case import Case, make_config
from benchmarks.training.step_profile import print_profile
from echo_lm.data_prep.loading.batch import Batch
from echo_lm.kernels.sequence import SequenceContext, gather_segments
from echo_lm.models import build_model, preset
from echo_lm.models.common.files import write_json
from echo_lm.models.mixers.registry import mixer_class
from echo_lm.pipeline.checkpoint.reader import load_checkpoint
from echo_lm.pipeline.checkpoint.writer import CheckpointWriter
from echo_lm.pipeline.engine import build as engine_module
from echo_lm.pipeline.engine import choose_device, join_process_group
from echo_lm.pipeline.monitoring.metrics import memory_gib, model_flops_utilization, peak_flops
from echo_lm.pipeline.run.folder import RunFolder

PARITY_STEPS, SAVED_AT = 20, 10
PARITY_RATE = 5e-4
ROUNDING = 2**-9  # of bf16


def config_of(case: dict):
    """The run configuration of a case; `rows` and `micro` count whole rows, over all ranks and of one micro-batch."""
    return make_config(
        case["model"],
        case["length"],
        case["length"] * case["rows"],
        case["micro"],
        checkpointed=case.get("checkpointed", False),
        compile=case["compile"],
        device=case["device"],
        workers=dist.get_world_size(),
        sequence_parallel=case.get("sequence_parallel", 1),
        zero_stage=case.get("zero_stage", 1),
        vocabulary=case["vocabulary"],
        precision="bf16" if case["device"] == "cuda" else "fp32",  # bf16 on a CPU is emulated
    )


@contextmanager
def built(case: dict, batch: Batch | None = None):
    """Context with the built case, whose memory is freed at its end."""
    built_case = Case(config_of(case), batch)
    try:
        yield built_case
    finally:
        built_case.close()
        del built_case
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


@contextmanager
def random_weights(nudge: int):
    """Context in which models are built without zero projections, since a freshly initialised SKA layer has no effect.

    `nudge`, a seed unless 0, changes every weight by at most a rounding of bf16, to measure the effect of rounding alone.
    """

    def randomized(config, **options):
        model = build_model(config, **options)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for mixer in (block.mixer for block in model.blocks):
                weight = mixer.out_proj.weight
                weight.copy_(
                    torch.randn(weight.shape, generator=generator) * (weight.shape[1] * len(model.blocks)) ** -0.5
                )
            generator = torch.Generator().manual_seed(nudge)
            for weight in model.parameters() if nudge else ():
                weight *= 1 + (2 * torch.rand(weight.shape, generator=generator) - 1) * ROUNDING
        return model

    engine_module.build_model = randomized
    try:
        yield
    finally:
        engine_module.build_model = build_model


def learnable_batch(step: int, rows: int, length: int, vocabulary: int) -> Batch:
    """Rows of tokens in a learnable order, every second one with a document border at a random position."""
    generator = torch.Generator().manual_seed(1000 + step)
    first = torch.randint(0, vocabulary, (rows, 1), generator=generator)
    strides = torch.randint(1, 5, (rows, length + 1), generator=generator).cumsum(1)
    tokens = (first + strides) % min(vocabulary, 1024)
    inside = [row * length + int(torch.randint(1, length, (1,), generator=generator)) for row in range(0, rows, 2)]
    borders = sorted({*range(0, rows * length + 1, length), *inside})
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=torch.ones(rows, length),
        cu_seqlens=torch.tensor(borders, dtype=torch.int32),
        is_recall=torch.zeros(rows, dtype=torch.bool),
    )


def parity(case: dict, folder: Path) -> dict:
    """Measure the losses of 20 steps; `save` writes a checkpoint after ten, `resume` runs only the steps after it."""
    shape = case["rows"], case["length"], case["vocabulary"]
    with random_weights(case.get("nudge", 0)), built(case, learnable_batch(0, *shape)) as built_case:
        run, checkpoint_row = RunFolder(folder / "run"), {}
        if dist.get_rank() == 0:  # a checkpoint takes the tokenizer along
            run.path.mkdir(exist_ok=True)
            write_json(run.data_file, {"folder": "."})
            (run.path / "tokenizer.json").write_text("{}")
        first = (
            load_checkpoint(built_case.engine, run.checkpoints / f"step_{SAVED_AT:08d}")[0] if case.get("resume") else 0
        )
        losses = []
        for step in range(first, PARITY_STEPS):
            if case.get("save") and step == SAVED_AT:
                writer = CheckpointWriter(built_case.engine, run, built_case.config, step=0)
                writer.begin(step, 0)
                writer.finish()
                if completed := writer.completed():
                    size = sum(file.stat().st_size for file in completed.path.rglob("*") if file.is_file())
                    checkpoint_row = dict(seconds=completed.seconds, stall_seconds=completed.stall_seconds, bytes=size)
            losses.append(built_case.step(learnable_batch(step, *shape), PARITY_RATE)[1])
    return {"losses": losses, "first_step": first} | checkpoint_row


def speed(case: dict, folder: Path) -> dict:
    """Measure tokens per second, the median of `steps` steps after `warmup` ones; rank 0's profile is written to `profile`."""
    with built(case) as built_case:
        for _ in range(case["warmup"]):
            built_case.step()
        memory_gib(built_case.device)
        times = []
        for _ in range(case["steps"]):
            dist.barrier()
            times.append(built_case.step()[0])
        if "profile" in case:
            with Path(case["profile"] if dist.get_rank() == 0 else os.devnull).open("w") as file, redirect_stdout(file):
                print_profile(built_case, case["rows"] * case["length"])
        tokens = case["rows"] * case["length"] / median(times)
        peak = peak_flops(built_case.device, "bf16")
        mfu = model_flops_utilization(built_case.model, case["length"], tokens, peak, dist.get_world_size())
        return {
            "tokens_per_second": round(tokens),
            "mfu": None if mfu is None else round(mfu, 4),
            "peak_gib": round(memory_gib(built_case.device), 2),
            "step_seconds": [round(seconds, 4) for seconds in times],
        }


def collective(case: dict, folder: Path) -> dict:
    """Measure bytes of this rank's part and time of one layer's messages: inside the layer, and in isolation."""
    device = choose_device(SimpleNamespace(run=SimpleNamespace(device=case["device"])))
    world, rank, kind = dist.get_world_size(), dist.get_rank(), case["kind_of_layer"]
    config = preset(case["model"])
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    length = case["length"] // world
    generator = torch.Generator(device).manual_seed(rank)
    layer = mixer_class(kind).build(config).to(device)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, device=device) * 0.02)
    layer.to(dtype)
    if kind == "attention":  # its messages alone: the products of a million tokens take seconds
        heads, width = config.attention.num_heads, config.d_model // config.attention.num_heads
        x = torch.randn(2, 1, heads, length, width, device=device, dtype=dtype, generator=generator, requires_grad=True)
    else:
        x = torch.randn(1, length, config.d_model, device=device, dtype=dtype, generator=generator, requires_grad=True)
    calls: list[list] = []
    for repeat in range(case["repeats"] + 2):
        context = SequenceContext(None, rank, world)
        dist.barrier()
        with timed_collectives(device) as timed_calls:
            y = gather_segments(x, context) if kind == "attention" else layer(x, context=context)
            y.backward(torch.ones_like(y))
        wait(device)
        if repeat >= 2:
            calls.append([(name, size, seconds()) for name, size, seconds in timed_calls])
        x.grad = None
        layer.zero_grad(set_to_none=True)
    # The rank that comes last to a collective does not wait in it.
    everyone = [None] * world
    dist.all_gather_object(everyone, calls)
    row = {"messages": len(calls[0])}
    for i, direction in enumerate(("forward", "backward")):
        times = [min(ranks[repeat][i][2] for ranks in everyone) for repeat in range(len(calls))]
        row[direction] = {
            "call": calls[0][i][0],
            "bytes": calls[0][i][1],
            "in_layer_us": round(median(times) * 1e6, 1),
        }
    payload = torch.ones(row["forward"]["bytes"] // 4, device=device)
    gathered = payload.new_empty(world * len(payload))
    for count in (5, case["repeats"]):
        wait(device)
        dist.barrier()
        started = time.perf_counter()
        for _ in range(count):
            dist.all_gather_into_tensor(gathered, payload)
        wait(device)
    row["alone_us"] = round((time.perf_counter() - started) / count * 1e6, 1)
    return row


@contextmanager
def timed_collectives(device: torch.device):
    """Record calls of the sequence-parallel collectives as (name, bytes of this rank's part, function that returns seconds)."""
    parts = {"all_gather_into_tensor": 1, "reduce_scatter": 0}
    old = {name: getattr(dist, name) for name in parts}
    calls = []

    def watch(name):
        def watched(*arguments, **options):
            if device.type != "cuda":
                started = time.perf_counter()
                result = old[name](*arguments, **options)
                seconds = time.perf_counter() - started
                calls.append((name, arguments[parts[name]].nbytes, lambda: seconds))
                return result
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            result = old[name](*arguments, **options)
            end.record()
            calls.append((name, arguments[parts[name]].nbytes, lambda: begin.elapsed_time(end) / 1e3))
            return result

        return watched

    for name in parts:
        setattr(dist, name, watch(name))
    try:
        yield calls
    finally:
        for name, function in old.items():
            setattr(dist, name, function)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    cases, rows = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    device = choose_device(SimpleNamespace(run=SimpleNamespace(device=cases[0]["device"])))
    torch.set_num_threads(1)  # as in training: threads of several ranks would wait for each other
    join_process_group(device)
    for case in cases:
        started = time.perf_counter()
        if dist.get_rank() == 0:
            print(f"begin {case['name']}", flush=True)
        try:
            result = {"parity": parity, "speed": speed, "collective": collective}[case["kind"]](
                case, rows.parent.parent
            )
        except torch.OutOfMemoryError:  # as large on every rank
            result = {"failed": "out of memory"}
        if dist.get_rank() == 0:
            with rows.open("a") as file:
                file.write(json.dumps(case | result | {"case_seconds": round(time.perf_counter() - started, 1)}) + "\n")
            print(f"end {case['name']} {time.perf_counter() - started:.1f} s", flush=True)
        gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
