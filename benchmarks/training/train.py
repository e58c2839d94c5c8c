"""Training throughput of whole models on one device: DeepSpeed's ZeRO-1 step in bf16, as a run takes it, on random tokens.

    python -m benchmarks.training.train --out benchmarks/results --prewarm     # all models, 2,048 to 65,536 tokens, and one of 1M
    python -m benchmarks.training.train --out DIR --models echo-180m transformer-180m --lengths 2048
    python -m benchmarks.training.train --profile echo-180m 2048               # the kernels that take the time of a step
    python -m benchmarks.training.train --out DIR --tiny --device cpu          # does the script work?

Every case is a process of its own with a time limit; its row is in the file before the next case begins. A case takes the
largest micro-batch that fits, and checkpoints activations only if none does. Rows are one document each. Times are whole
steps, optimizer and host included, the median of several; MFU by `pipeline/monitoring/metrics.py` (logits of every position count,
what is computed twice counts once). On a machine without our packages: `source docker/offline/use_bundle.sh` first.
"""

import argparse
import contextlib
import gc
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

from benchmarks.reporting import hardware, last_line, reason_of, write
from benchmarks.training.case import Case, make_config, random_batch
from benchmarks.training.step_profile import print_profile
from echo_lm.models.common.provenance import commit
from echo_lm.models.presets import LATEST_VERSION

MODELS = ("transformer-180m", "echo-180m", "hybrid-180m", "echo-50m", "transformer-50m")
LENGTHS = (2_048, 16_384, 65_536)
STEP_TOKENS = 262_144  # of every case, so that all pay the same optimizer
MICROBATCH_TOKENS = 65_536  # what is tried first
LONGEST = ("echo-50m", 1_048_576)  # one sequence
TINY = {"models": ("transformer-1m", "echo-1m", "hybrid-1m"), "lengths": (64, 256), "longest": ("echo-1m", 1024)}
OUT_OF_MEMORY, NO_PLAN = "out of memory", 3


def plans(length: int, tokens: int, largest: int, only_checkpointed: bool) -> list[tuple[int, bool]]:
    """Candidate plans, in order: rows of a micro-batch, and whether activations are checkpointed."""
    rows = tokens // length
    sizes = [size for size in (2**i for i in range(20, -1, -1)) if rows % size == 0 and size * length <= largest]
    sizes = sizes or [1]
    plain = [] if only_checkpointed else [(size, False) for size in sizes[:4]]
    return plain + [(size, True) for size in sizes[:4]]


def fit(model: str, length: int, tokens: int, options: argparse.Namespace) -> tuple[Case, tuple[int, bool], float]:
    """Build the case under the first plan that fits into memory, warmed up; returns it with the plan and its first loss."""
    import torch

    candidates = plans(length, tokens, options.microbatch_tokens, only_checkpointed=length > 2**17)
    for plan in candidates:
        case = None
        try:
            rows, checkpointed = plan
            config = make_config(
                model,
                length,
                tokens,
                rows,
                checkpointed=checkpointed,
                compile=options.compile,
                cuda_graphs=options.cuda_graphs,
                device=options.device,
                vocabulary=options.vocabulary,
                changed={"preset_version": options.preset_version},
            )
            case = Case(config, random_batch(tokens // length, length, options.vocabulary, options.document))
            loss = case.step()[1]
            for _ in range(options.warmup - 1):
                case.step()
            return case, plan, loss
        except torch.OutOfMemoryError:
            print(f"{model} {length}: micro-batches of {plan[0]}, checkpointing {plan[1]}: {OUT_OF_MEMORY}", flush=True)
        if case is not None:  # outside the handler: its traceback holds tensors
            case.close()
        del case
        gc.collect()
        torch.cuda.empty_cache()
    sys.exit(NO_PLAN)


def measure(model: str, length: int, tokens: int, options: argparse.Namespace) -> dict:
    """Measure one case; returns its row."""
    import torch

    from echo_lm.models.accounting import GIB, training_flops
    from echo_lm.pipeline.monitoring.metrics import memory_gib, model_flops_utilization, peak_flops

    case, (rows, checkpointed), loss = fit(model, length, tokens, options)
    memory_gib(case.device)  # from here on
    times = [case.step()[0] for _ in range(options.steps)]
    speed = tokens / median(times)
    mfu = model_flops_utilization(case.model, length, speed, peak_flops(case.device, "bf16"), 1)
    reserved = torch.cuda.memory_reserved() / GIB if case.device.type == "cuda" else None
    return {
        "model": model,
        "length": length,
        "tokens_per_second": round(speed),
        "mfu": None if mfu is None else round(mfu, 4),
        "peak_gib": round(memory_gib(case.device), 2),
        "reserved_gib": None if reserved is None else round(reserved, 2),
        "step_tokens": tokens,
        "microbatch_rows": rows,
        "activation_checkpointing": checkpointed,
        "compile": options.compile,
        "cuda_graphs": options.cuda_graphs,
        "preset_version": options.preset_version,
        "document_tokens": options.document,
        "backend": "ZeRO-1, bf16, " + ("Triton kernels" if case.device.type == "cuda" else "PyTorch"),
        "step_seconds": [round(seconds, 4) for seconds in times],
        "first_loss": round(loss, 4),
        "training_flops_per_token": training_flops(case.model, length),
    }


def prewarm(cases: list[tuple[str, int]], options: argparse.Namespace) -> None:
    """Compile the kernels of all models in parallel, one process per model, into the caches on disk.

    One row of the shortest length is enough: the kernels of the scan and of SKA are the same at every length.
    """
    shortest = min(length for _, length in cases)
    started = time.perf_counter()
    running = {}
    for model in dict.fromkeys(model for model, _ in cases):
        tail = [*("--step-tokens", str(shortest)), *("--warmup", "1"), *("--steps", "1")]
        running[model] = start(model, shortest, options, tail)
    for model, process in running.items():
        try:
            output, _ = process.communicate(timeout=max(1.0, started + options.timeout - time.perf_counter()))
            state = "ready" if process.returncode == 0 else "failed: " + reason_of(output)
        except subprocess.TimeoutExpired:
            process.kill()
            state = "did not get ready in time"
        print(f"prewarm {model}: {state}, {time.perf_counter() - started:.0f} s", flush=True)


def start(model: str, length: int, options: argparse.Namespace, tail: list[str]) -> subprocess.Popen:
    """Start a process that measures one case and prints its row as the last line; options in `tail` take precedence."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.training.train",
        "--case",
        model,
        str(length),
        "--device",
        options.device,
    ]
    command += ["--tiny"] * options.tiny
    command += ["--step-tokens", str(options.step_tokens), "--microbatch-tokens", str(options.microbatch_tokens)]
    command += ["--warmup", str(options.warmup), "--steps", str(options.steps)]
    command += ["--preset-version", str(options.preset_version)]
    command += ["--cuda-graphs" if options.cuda_graphs else "--no-cuda-graphs"]
    command += ["--document", str(options.document)] if options.document else []
    command += ["--compile" if options.compile else "--no-compile", *tail]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_case(model: str, length: int, options: argparse.Namespace) -> dict:
    """Run a case; returns its row, or one with the reason in `failed`."""
    one_sequence = ["--step-tokens", str(length), "--steps", "2"] if (model, length) == options.longest else []
    process = start(model, length, options, one_sequence)
    try:
        output, _ = process.communicate(timeout=options.timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate()[0]
        return {"model": model, "length": length, "failed": f"not done in {options.timeout} s: {last_line(output)}"}
    if process.returncode == 0:
        with contextlib.suppress(ValueError, StopIteration):
            return json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    reason = OUT_OF_MEMORY if process.returncode == NO_PLAN else reason_of(output)
    log = options.out / f"failed_{model}_{length}.log"
    log.write_text(output)
    print(f"{log} holds what it printed", flush=True)
    return {"model": model, "length": length, "failed": reason}


def table(rows: list[dict]) -> None:
    print(f"{'model':18} {'length':>9} {'tokens/s':>10} {'MFU':>6} {'GiB':>6}  micro-batch")
    for row in rows:
        if "failed" in row:
            print(f"{row['model']:18} {row['length']:>9} {row['failed']}")
            continue
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        plan = f"{row['microbatch_rows']} rows" + (", checkpointed" if row["activation_checkpointing"] else "")
        print(
            f"{row['model']:18} {row['length']:>9} {row['tokens_per_second']:>10,} {mfu:>6} {row['peak_gib']:>6}  {plan}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the JSON file of rows")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--lengths", nargs="+", type=int)
    parser.add_argument("--no-longest", action="store_true", help="leave out the one sequence of a million tokens")
    parser.add_argument("--prewarm", action="store_true", help="compile the kernels of all models at once first")
    parser.add_argument("--profile", nargs=2, metavar=("MODEL", "LENGTH"))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="small models and lengths")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cuda-graphs", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--preset-version", type=int, default=LATEST_VERSION, help="1: SKA layers that write at once")
    parser.add_argument("--document", type=int, help="tokens of a document; a row is one if left out")
    parser.add_argument("--step-tokens", type=int)
    parser.add_argument("--microbatch-tokens", type=int)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--timeout", type=float, default=300, help="seconds of a case")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.step_tokens = options.step_tokens or (256 if options.tiny else STEP_TOKENS)
    options.microbatch_tokens = options.microbatch_tokens or (128 if options.tiny else MICROBATCH_TOKENS)
    options.vocabulary = 512 if options.tiny else 32_000
    options.longest = TINY["longest"] if options.tiny else LONGEST
    if options.case:
        model, length = options.case[0], int(options.case[1])
        print(json.dumps(measure(model, length, options.step_tokens, options)))
        return 0
    if options.profile:
        model, length = options.profile[0], int(options.profile[1])
        case, (rows, checkpointed), _ = fit(model, length, options.step_tokens, options)
        print(f"{model}, {length} tokens, micro-batches of {rows} rows, checkpointing {checkpointed}")
        print_profile(case, options.step_tokens)
        return 0
    if options.out is None:
        parser.error("--out is missing: where do the rows go?")
    models = options.models or (TINY["models"] if options.tiny else MODELS)
    lengths = options.lengths or (TINY["lengths"] if options.tiny else LENGTHS)
    cases = [(model, length) for length in lengths for model in models]
    if not options.no_longest and options.longest[0] in models:
        cases.append(options.longest)
    if options.prewarm:
        prewarm(cases, options)
    name = hardware(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"train_{name.replace('80GB HBM3', '').split()[-1].lower()}_{date.today()}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for model, length in cases:
        row = run_case(model, length, options)
        # A case measured again replaces its row; one that failed now does not.
        if "failed" not in row:
            rows = [old for old in rows if (old["model"], old["length"]) != (model, length)]
        rows.append(row | {"commit": commit()})
        write(path, {"hardware": name, "date": str(date.today()), "rows": rows})
        table(rows[-1:])
    print()
    table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
