"""Several GPUs of one host: parity of every layout, weak and strong scaling, the messages of sequence parallelism, resuming.

    python -m benchmarks.distributed.multigpu --out benchmarks/results  # all GPUs of this machine, NCCL
    python -m benchmarks.distributed.multigpu --out DIR --processes 4 --tiny   # on the CPU, gloo: does the script work?

1. Parity: 20 steps in bf16 of `echo-50m`, no output projection zero, documents that begin inside rows: losses on one GPU, and
   under data and sequence parallelism with ZeRO 1, 2 and 3. Noise is what one GPU gives when it runs again, with its batch cut
   into other micro-batches, and with every weight moved by a rounding of bf16.
2. Scaling in tokens/s: weak at 2,048 tokens, the same tokens for every GPU; strong with one long sequence over all GPUs.
3. The collective of each kind of layer at three lengths: bytes, time in the layer, time alone.
4. A checkpoint on all GPUs (ZeRO 2), gone on with on half of them (ZeRO 1).

Worker groups of fewer GPUs run side by side. Prints tables and writes `multigpu_<n>x<gpu>_<date>.json` after every group, so that
what ran is there if it is cut off; a later start on the same day adds to it (--only). On a machine without our packages:
`source docker/offline/use_bundle.sh` first.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from benchmarks.reporting import hardware, reason_of, write
from echo_lm.models.common.provenance import commit
from echo_lm.pipeline.visible_gpus import visible_gpus

WORKER = "benchmarks.distributed.multigpu_worker"
# NVLink multicast can put GPUs that others share out of service.
NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
REFERENCE = "parity: 1 GPU"
NOISE_FACTOR = 3.0  # of the largest difference among the repeats on one GPU: still called noise
FULL = dict(
    parity=dict(model="echo-50m", length=2048, rows=16, compile=False),
    weak=[("echo-180m", 2048, 64, 32), ("echo-880m", 2048, 32, 8)],  # rows of a GPU in a step, in a micro-batch
    strong=[("echo-180m", 262_144), ("echo-50m", 1_048_576), ("echo-880m", 131_072)],
    messages=dict(lengths=(4096, 65_536, 1_048_576), echo="echo-180m", hybrid="hybrid-180m", repeats=20),
    speed=dict(warmup=3, steps=5, compile=True),
    vocabulary=32_000,
)
TINY = dict(
    parity=dict(model="echo-1m", length=32, rows=4, compile=False),
    weak=[("echo-1m", 64, 2, 1)],
    strong=[("echo-1m", 512)],
    messages=dict(lengths=(256, 4096), echo="echo-1m", hybrid="hybrid-1m", repeats=3),
    speed=dict(warmup=1, steps=1, compile=False),
    vocabulary=512,
)


def plan(world: int, largest: int, sizes: dict) -> list[dict]:
    """The cases of worker groups of `world` ranks, on a machine of `largest` GPUs."""
    cases = []
    same = dict(kind="parity", world=world, **sizes["parity"])
    rows = same["rows"]
    if world == 1:
        cases.append(same | dict(name=REFERENCE, micro=rows))
        for name, micro, nudge in (
            ("again", rows, 0),
            ("halves", rows // 2, 0),
            *((f"nudged {i}", rows, i) for i in (1, 2, 3)),
        ):
            cases.append(same | dict(name=f"parity: {name}", micro=micro, repeat=True, nudge=nudge))
    for sequence in sorted({1, 2, world}) if world > 1 else []:
        layout = " x ".join([f"dp{world // sequence}"] * (sequence < world) + [f"sp{sequence}"] * (sequence > 1))
        for stage in (1, 2, 3):
            name = f"parity: {layout} ZeRO-{stage}"
            micro = rows * sequence // world
            cases.append(same | dict(name=name, micro=micro, sequence_parallel=sequence, zero_stage=stage))
        if sequence == world:  # what a block learned of other ranks is kept for when it is computed again
            again = dict(micro=rows, sequence_parallel=world, checkpointed=True, compile=sizes["speed"]["compile"])
            cases.append(same | dict(name=f"parity: {layout} checkpointed, compiled") | again)
    half = max(1, largest // 2)
    if world == largest:
        cases.append(same | dict(name=f"checkpoint: saved on {world}", micro=rows // world, zero_stage=2, save=True))
        for length in sizes["messages"]["lengths"] if world > 1 else []:
            for layer in ("ska", "mamba2", "attention"):
                model = sizes["messages"]["hybrid" if layer == "attention" else "echo"]
                cases.append(
                    dict(kind="collective", name=f"messages: {layer} {length}", world=world, kind_of_layer=layer)
                    | dict(model=model, length=length, repeats=sizes["messages"]["repeats"])
                )
    if world == half and largest > 1:
        cases.append(same | dict(name=f"checkpoint: resumed on {world}", micro=rows // world, resume=True))
    for model, length, share, micro in sizes["weak"]:
        name = f"weak: {model} {length}"
        cases.append(
            dict(kind="speed", name=name, model=model, length=length, world=world, rows=share * world, micro=micro)
            | sizes["speed"]
        )
    for model, length in sizes["strong"]:
        cases.append(
            dict(kind="speed", name=f"strong: {model} {length}", model=model, length=length, world=world, rows=1)
            | dict(micro=1, sequence_parallel=world, checkpointed=True)
            | sizes["speed"]
        )
    return [case | dict(vocabulary=sizes["vocabulary"]) for case in cases]


def pattern(text: str) -> re.Pattern:
    """Parse a regular expression of the command line."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def profile_of(case: dict, profiled: re.Pattern, out: Path) -> dict:
    """The option with the profile's path, for a case to profile; else empty."""
    if case["kind"] != "speed" or not profiled.search(case["name"]):
        return {}
    name = f"profile_{re.sub('[^a-z0-9]+', '_', case['name'])}_{case['world']}.txt"
    return {"profile": str((out / name).resolve())}


class WorkerGroup:
    """`world` processes from GPU `first` on, with a list of cases."""

    def __init__(self, cases: list[dict], world: int, first: int, device: str, folder: Path):
        self.cases, self.folder = cases, folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cases.json").write_text(json.dumps([case | {"device": device} for case in cases]))
        self.rows_file = folder / "rows.jsonl"
        self.log = (folder / "log").open("w")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | NO_MULTICAST
        if device == "cuda":
            shared["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # models of all sizes follow each other
            shared["CUDA_VISIBLE_DEVICES"] = visible_gpus(range(first, first + world))
        else:
            shared["GLOO_SOCKET_IFNAME"] = "lo"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", WORKER, str(folder / "cases.json"), str(self.rows_file)],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=self.log,
                stderr=subprocess.STDOUT,
            )
            for rank in range(world)
        ]

    def running(self) -> bool:
        """Whether all ranks run; after the failure of one the others, which would wait for it, are killed."""
        codes = [process.poll() for process in self.processes]
        if any(codes):
            self.kill()
        return None in codes and not any(codes)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def rows(self, logs: Path) -> list[dict]:
        """The rows of the cases; those of a failed one and the cases after it have the reason. The output of a failed worker group
        is kept in `logs`."""
        self.kill()
        self.log.close()
        lines = self.rows_file.read_text().splitlines() if self.rows_file.exists() else []
        rows = [json.loads(line) for line in lines]
        unfinished = self.cases[len(rows) :]
        output = (self.folder / "log").read_text()
        reason = reason_of(output) if unfinished else ""
        if unfinished:
            (logs / f"failed_group_{self.folder.name}.log").write_text(output[-1_000_000:])
        for i, case in enumerate(unfinished):
            rows.append(case | {"failed": reason if i == 0 else "not run: the case before it failed"})
        return rows


def run_groups(
    cases: list[dict], world: int, count: int, device: str, folder: Path, logs: Path, until: float
) -> list[dict]:
    """Run all cases of `world` ranks in up to `count` parallel worker groups; cases after a failed one get another group."""
    rows, attempt = [], 0
    while cases and time.monotonic() < until:
        attempt += 1
        shares = [cases[i::count] for i in range(min(count, len(cases)))]
        groups = [
            WorkerGroup(share, world, i * world, device, folder / f"{world}-{attempt}-{i}")
            for i, share in enumerate(shares)
        ]
        while [group for group in groups if group.running()]:
            if time.monotonic() > until:
                break
            time.sleep(0.2)
        group_rows = [row for group in groups for row in group.rows(logs)]
        not_run = [row["name"] for row in group_rows if row.get("failed", "").startswith("not run")]
        rows += [row for row in group_rows if row["name"] not in not_run]
        cases = [case for case in cases if case["name"] in not_run]
    return rows + [case | {"failed": "not run: no time was left"} for case in cases]


def merged(old: list[dict], new: list[dict]) -> list[dict]:
    """Merge rows of the same day: a case that ran again replaces its old row, unless it failed now."""
    new_keys = {(row["name"], row["world"]) for row in new if "failed" not in row}
    kept_rows = [row for row in old if (row["name"], row["world"]) not in new_keys]
    kept_keys = {(row["name"], row["world"]) for row in kept_rows}
    return kept_rows + [row for row in new if "failed" not in row or (row["name"], row["world"]) not in kept_keys]


def differences(rows: list[dict]) -> list[tuple[str, float, bool]]:
    """For each layout: name, the largest relative difference of its losses from one GPU's, and whether that is a repeat."""
    curves = {row["name"]: row for row in rows if "losses" in row}
    reference = curves.get(REFERENCE)
    if reference is None:
        return []
    differences_by_layout = []
    for name, row in curves.items():
        if row is reference:
            continue
        pairs = zip(row["losses"], reference["losses"][row["first_step"] :], strict=True)
        differences_by_layout.append((name, max(abs(a - b) / b for a, b in pairs), bool(row.get("repeat"))))
    return differences_by_layout


def parity_table(rows: list[dict]) -> None:
    layouts = differences(rows)
    noise = max((difference for _, difference, repeat in layouts if repeat), default=None)
    if noise is None:
        print("parity: one GPU did not run, or not again")
        return
    print(f"\nlosses of 20 steps against one GPU, largest relative difference (noise {noise:.1e}):")
    for name, difference, repeat in layouts:
        verdict = "noise" if repeat else "within" if difference <= NOISE_FACTOR * noise else "DIFFERS"
        print(f"  {name.removeprefix('parity: '):28} {difference:.1e}  {verdict}")


def scaling_table(rows: list[dict]) -> None:
    speeds = [row for row in rows if row["kind"] == "speed"]
    print(f"\n{'tokens/s':34} {'GPUs':>4} {'tokens/s':>10} {'MFU':>6} {'GiB':>6} {'efficiency':>10}")
    for row in sorted(speeds, key=lambda row: (row["name"], row["world"])):
        if "failed" in row:
            print(f"{row['name']:34} {row['world']:>4} {row['failed'][:80]}")
            continue
        one = next((r for r in speeds if r["name"] == row["name"] and r["world"] == 1 and "failed" not in r), None)
        share = f"{row['tokens_per_second'] / row['world'] / one['tokens_per_second']:.1%}" if one else "-"
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        print(
            f"{row['name']:34} {row['world']:>4} {row['tokens_per_second']:>10,} {mfu:>6} {row['peak_gib']:>6} {share:>10}"
        )


def message_table(rows: list[dict]) -> None:
    print(f"\n{'messages of a layer':28} {'bytes':>13} {'forward us':>10} {'backward us':>11} {'alone us':>9}")
    for row in rows:
        if row["kind"] == "collective":
            if "failed" in row:
                print(f"{row['name']:28} {row['failed'][:80]}")
                continue
            forward, backward = row["forward"], row["backward"]
            print(
                f"{row['name'].removeprefix('messages: '):28} {forward['bytes']:>13,} {forward['in_layer_us']:>10} "
                f"{backward['in_layer_us']:>11} {row['alone_us']:>9}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    parser.add_argument("--gpus", type=int, help="how many; all that are visible if left out")
    parser.add_argument("--processes", type=int, help="instead of GPUs: so many processes on the CPU")
    parser.add_argument("--tiny", action="store_true", help="small models and lengths")
    parser.add_argument("--only", type=pattern, metavar="REGEX", help="cases whose name it finds")
    parser.add_argument(
        "--profile",
        nargs="?",
        type=pattern,
        const=re.compile(""),
        metavar="REGEX",
        help="of each speed case whose name it finds (all without one) a file in --out: where rank 0's time goes",
    )
    parser.add_argument("--seconds", type=float, default=570, help="begin nothing and stop what runs after so long")
    options = parser.parse_args()
    ask = "import torch; print(torch.cuda.device_count())"
    visible = int(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout or 0)
    largest = options.processes or options.gpus or visible
    device = "cpu" if options.processes else "cuda"
    if largest < 1 or (device == "cuda" and largest > visible) or largest & (largest - 1):
        parser.error(f"{largest} ranks on {visible} visible GPUs: name a power of two that is there, or --processes")
    until = time.monotonic() + options.seconds
    name = hardware(device)
    card = name.replace("80GB HBM3", "").split()[-1].lower()
    path = options.out / f"multigpu_{largest}x{card}_{date.today()}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = json.loads(path.read_text())["rows"] if path.exists() else []
    world = largest
    with tempfile.TemporaryDirectory() as folder:
        while world >= 1:
            cases = [case for case in plan(world, largest, TINY if options.tiny else FULL)]
            cases = [case for case in cases if not options.only or options.only.search(case["name"])]
            if options.profile is not None:
                cases = [case | profile_of(case, options.profile, options.out) for case in cases]
            started = time.monotonic()
            new_rows = run_groups(cases, world, largest // world, device, Path(folder), options.out, until)
            print(f"worker groups of {world}: {time.monotonic() - started:.0f} s", flush=True)
            for row in new_rows:
                if "failed" in row:
                    print(f"  {row['name']}: {row['failed']}", flush=True)
            added = [
                {key: value for key, value in row.items() if key != "profile"} | {"commit": commit()}
                for row in new_rows
            ]
            rows = merged(rows, added)
            write(path, {"hardware": f"{largest} x {name}", "date": str(date.today()), "rows": rows})
            world //= 2
    parity_table(rows)
    message_table(rows)
    scaling_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
