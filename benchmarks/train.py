"""Training throughput of whole models on one device, through the pipeline's own engine and update.

    python benchmarks/train.py --out benchmarks/results               # all cases of `CASES`
    python benchmarks/train.py --prewarm                              # only fill the kernel caches, all models at once
    python benchmarks/train.py --only echo-180m:2048 --only echo-50m:1048576 ...
    python benchmarks/train.py --profile echo-180m 2048               # where a step's time goes
    python benchmarks/train.py --device cpu --tiny --out FOLDER       # every case in miniature, to try this script

Each case is a process of its own with a time limit: one that fails costs its own row only. A case that runs out of memory
is tried again with half the micro-batch, and last with activation checkpointing; the row says what it ran with. Rows are
appended to `train_<device>_<date>.json` as they come. Weights are bf16 with fp32 masters under ZeRO 1, tokens are random,
no document begins inside a row. Tokens/s is by the median step, update included; MFU is `pipeline/metrics.py`'s.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from statistics import median

STEP_TOKENS = 131_072
MILLION = 1_048_576
MODELS = ("transformer-180m", "echo-180m", "echo-50m", "hybrid-180m", "transformer-50m")
LENGTHS = (2048, 16_384, 65_536)
CASES = [(model, length) for length in LENGTHS for model in MODELS] + [("echo-50m", MILLION)]
TINY = 64  # --tiny: lengths and tokens a step are divided by it
VOCABULARY = 32_000
OUT_OF_MEMORY = 3  # exit status of a case
# What a micro-batch may hold on 80 GiB without checkpointing; a guess to start from, halved on failure.
MICROBATCH_TOKENS = {"50m": 65_536, "180m": 32_768, "1m": STEP_TOKENS}


def main() -> int:
    options = arguments()
    if options.case:
        return run_case(options)
    if options.profile:
        return run_profile(options)
    if options.prewarm:
        return prewarm(options)
    wanted = [parse_case(text) for text in options.only] or CASES
    rows = []
    for model, length in wanted:
        row = measure(model, length, options)
        rows.append(row)
        save(row, options)
        print(line(row), flush=True)
    print("\n" + "\n".join([HEADER, *map(line, rows)]))
    return 0 if all("failed" not in row for row in rows) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the JSON rows")
    parser.add_argument("--only", action="append", default=[], metavar="MODEL:LENGTH")
    parser.add_argument("--profile", nargs=2, metavar=("MODEL", "LENGTH"))
    parser.add_argument("--prewarm", action="store_true", help="compile kernels of all models, several at once")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="1M parameters, lengths and batches 1/64")
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    parser.add_argument("--limit", type=float, default=240, help="seconds of one try of a case")
    parser.add_argument("--microbatch-tokens", type=int, help="to start from; default by size")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="blocks without torch.compile")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.out or options.case or options.profile or options.prewarm):
        parser.error("name a folder with --out")
    return options


def parse_case(text: str) -> tuple[str, int]:
    model, _, length = text.partition(":")
    if not length.isdigit():
        sys.exit(f"--only {text}: write it as MODEL:LENGTH, e.g. echo-180m:2048")
    return model, int(length)


# ---- the parent: tries, rows, table


def tries(model: str, length: int, options: argparse.Namespace) -> list[dict]:
    """How a case is run, the fastest that may fit first."""
    tokens = max(options.microbatch_tokens or MICROBATCH_TOKENS[model.rpartition("-")[2]], length)
    tokens = min(tokens, max(STEP_TOKENS, length))
    found = []
    if length < MILLION:
        while tokens >= length:
            found.append({"microbatch": tokens // length, "checkpointing": False})
            tokens //= 2
        found = found[:3]
    return [*found, {"microbatch": 1, "checkpointing": True}]


def child(case: dict, options: argparse.Namespace) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, "--case", json.dumps(case), "--device", options.device]
    command += ["--steps", str(case.pop("steps", options.steps))]
    command += ["--tiny"] * options.tiny + ["--no-compile"] * (not options.compile)
    # mamba-ssm's autotuning takes minutes: its results are kept beside the compiled kernels.
    environment = os.environ | {"TRITON_CACHE_AUTOTUNING": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    return subprocess.run(command, capture_output=True, text=True, timeout=options.limit, env=environment)


def measure(model: str, length: int, options: argparse.Namespace) -> dict:
    """The row of a case: of the first try that fits, or why there is none."""
    row: dict = {"model": model, "length": length}
    for attempt in tries(model, length, options):
        started = time.perf_counter()
        try:
            done = child(row | attempt, options)
        except subprocess.TimeoutExpired:
            return row | attempt | {"failed": f"no result in {options.limit:.0f} s"}
        if done.returncode == 0:
            found = json.loads(done.stdout.splitlines()[-1])
            return row | attempt | found | {"wall_seconds": round(time.perf_counter() - started, 1)}
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{model} {length} {attempt}: {last}", file=sys.stderr, flush=True)
        if done.returncode != OUT_OF_MEMORY:
            print("\n".join(done.stderr.splitlines()[-25:]), file=sys.stderr, flush=True)
            return row | attempt | {"failed": last[:300]}
    return row | {"failed": "out of memory, also one row at a time with checkpointing"}


def prewarm(options: argparse.Namespace) -> int:
    """One short step of every model with a recurrence, at the same time: kernels are compiled and tuned once."""
    models = [model for model in MODELS if not model.startswith("transformer")]

    def one(model: str) -> int:
        case = {"model": model, "length": LENGTHS[0], "microbatch": 1, "checkpointing": False, "rows": 1, "steps": 1}
        started = time.perf_counter()
        try:
            done = child(case, options)
        except subprocess.TimeoutExpired:
            print(f"{model}: not ready in {options.limit:.0f} s", flush=True)
            return 1
        tail = "" if done.returncode == 0 else done.stderr[-2000:]
        print(f"{model}: status {done.returncode} in {time.perf_counter() - started:.0f} s\n{tail}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(1 if options.device == "cpu" else len(models)) as pool:
        return max(pool.map(one, models))


def save(row: dict, options: argparse.Namespace) -> None:
    """Append the row to the day's file, which is replaced as a whole."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"train_{row.get('device', options.device)}_{date.today()}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows.append(row | {"date": str(date.today()), "commit": commit or None})
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(rows, indent=1) + "\n")
    aside.rename(path)


HEADER = f"{'model':18} {'length':>8} {'tokens/s':>10} {'MFU':>6} {'GiB':>6} {'rows':>5} {'recompute':>9}"


def line(row: dict) -> str:
    start = f"{row['model']:18} {row['length']:8}"
    if "failed" in row:
        return f"{start} {row['failed'][:80]}"
    mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
    return (
        f"{start} {row['tokens_per_second']:10.0f} {mfu:>6} {row['peak_gib']:6.1f} {row['microbatch']:5} "
        f"{'yes' if row['checkpointing'] else 'no':>9}"
    )


# ---- the child: one case in this process


def prepare(case: dict, options: argparse.Namespace):
    """Engine, configuration, mesh and one batch on the CPU, of random tokens."""
    import torch

    from echo_lm.data_prep.batch import Batch
    from echo_lm.pipeline.config import load_config
    from echo_lm.pipeline.engine import build_engine, choose_device, join_process_group
    from echo_lm.pipeline.mesh import make_mesh

    divisor = TINY if options.tiny else 1
    length, vocabulary = case["length"] // divisor, 512 if options.tiny else VOCABULARY
    rows = case.get("rows") or max(1, STEP_TOKENS // divisor // length)
    model = case["model"].rpartition("-")[0] + "-1m" if options.tiny else case["model"]
    overrides = [
        f"train.sequence_length={length}",
        f"train.batch_tokens={rows * length}",
        "train.precision=bf16",
        "run.workers=1",
        "run.zero_stage=1",
        f"run.microbatch_sequences={min(case['microbatch'], rows)}",
        f"run.activation_checkpointing={str(case['checkpointing']).lower()}",
        f"run.compile={str(options.compile).lower()}",
        f"run.device={options.device}",
    ]
    config = load_config("smoke", overrides)
    config = config.model_copy(update={"model": type(config.model)(preset=model)})
    device = choose_device(config)
    join_process_group(device)
    mesh = make_mesh(1)
    engine = build_engine(config, vocabulary, device, mesh)
    tokens = torch.randint(0, vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=torch.ones(rows, length),
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32) * length,
        is_recall=torch.zeros(rows, dtype=torch.bool),
    )
    return engine, config, mesh, batch, vocabulary


def run_case(options: argparse.Namespace) -> int:
    """Time one case and print its part of the row as the last line."""
    import torch

    from echo_lm.models.accounting import GIB
    from echo_lm.pipeline.metrics import model_flops_utilization, peak_flops
    from echo_lm.pipeline.update import update

    case = json.loads(options.case)
    try:
        engine, config, mesh, batch, vocabulary = prepare(case, options)
        cuda, times = engine.device.type == "cuda", []
        for step in range(options.steps + 3):
            if step == 3 and cuda:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            done = update(engine, batch, 1e-4, config, mesh, flags=[])
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    except torch.OutOfMemoryError as error:
        print(f"out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return OUT_OF_MEMORY
    seconds = median(times[3:])
    speed = batch.tokens.numel() / seconds
    peak = peak_flops(engine.device, "bf16")
    row = {
        "tokens_per_second": round(speed),
        "mfu": model_flops_utilization(config.model.resolve(vocabulary), batch.tokens.shape[1], speed, peak, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if cuda else 0.0,
        "step_seconds": [round(t, 4) for t in times],
        "tokens_per_step": batch.tokens.numel(),
        "loss": done.metrics["loss"],
        "compile": options.compile,
        "zero_stage": 1,
        "precision": "bf16",
        "backend": backends(engine.device),
        "hardware": torch.cuda.get_device_name() if cuda else "cpu",
        "device": torch.cuda.get_device_name().split()[1].lower() if cuda else "cpu",
        "torch": torch.__version__,
        "tiny": options.tiny,
    }
    print(json.dumps(row))
    return 0


def backends(device) -> str:
    """What computes the recurrences here."""
    from echo_lm.kernels.ssd.scan import mamba_ssm_kernel

    if device.type == "cpu":
        return "torch"
    return "ska triton, " + ("mamba-ssm" if mamba_ssm_kernel() else "ssd torch") + ", sdpa"


def run_profile(options: argparse.Namespace) -> int:
    """The kernels of a step by their time on the device, and how long the host took to launch them."""
    from torch.profiler import ProfilerActivity, profile

    from echo_lm.pipeline.update import update

    model, length = options.profile[0], int(options.profile[1])
    attempt = tries(model, length, options)[0]
    print(f"{model} {length} {attempt}", flush=True)
    engine, config, mesh, batch, _ = prepare({"model": model, "length": length} | attempt, options)
    cuda = engine.device.type == "cuda"

    def step() -> float:
        started = time.perf_counter()
        update(engine, batch, 1e-4, config, mesh, flags=[])
        return time.perf_counter() - started

    plain = [step() for _ in range(4)][-1]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as found:
        traced = step()
    events = found.key_averages()
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    kernels = [
        event for event in events if getattr(event, by) > 0 and (not cuda or str(event.device_type).endswith("CUDA"))
    ]
    busy = sum(getattr(event, by) for event in kernels) / 1e6
    host = sum(event.self_cpu_time_total for event in events) / 1e6
    print(f"a step: {plain:.4f} s; traced {traced:.4f} s, device busy {busy:.4f} s, host {host:.4f} s")
    for event in sorted(kernels, key=lambda event: -getattr(event, by))[:40]:
        print(f"{getattr(event, by) / 1e3:10.2f} ms {event.count:6}  {event.key[:130]}")
    if cuda:
        print("\nhost, by operator:")
        for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:15]:
            print(f"{event.self_cpu_time_total / 1e3:10.2f} ms {event.count:6}  {event.key[:130]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
