"""Run and study folders as training leaves them, written by hand: the dashboard must show exactly what is in them."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import yaml

from echo_lm.evals.scores import accuracy
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.run.lineage import Lineage, Parent, Segment

STEPS, INTERVAL = 40, 10
LENGTHS = (64, 256, 1024)
SIZES = (50_000, 50_100, 50_023)  # bytes of each batch of held-out text
MACHINE = {"cpu_percent": 87.5, "host_memory_percent": 41.0, "process_gib": 0.61}


def step_event(step: int, at: float, shift: float = 0.0) -> dict[str, Any]:
    """A `step` event with numbers that depend on the step and on nothing else."""
    text, recall = (
        2.0 + 4.0 * math.exp(-step / 12) + shift,
        0.2 + 3.3 / (1 + math.exp(min(99, (step - 20) / 4))) + shift,
    )
    return {
        "kind": "step",
        "time": at,
        "step": step,
        "tokens": step * 512,
        "loss": (text + recall) / 2,
        "loss_text": text,
        "loss_recall": recall,
        "bits_per_byte": text / 2.0794,
        "grad_norm": 1.0 + math.sin(step) / 3,
        "learning_rate": 3e-3 * min(1, step / 8),
        "tokens_per_second": 5432.1 + 100 * math.cos(step),
        "mfu": 0.3712,
        "memory_gib": 0.61,
        "data_stall_seconds": 0.0003,
        "epochs": {"web": step / 16, "code": 0.25},
        "loss_by_source": {"web": text + 0.1, "code": text - 0.1},
    } | (MACHINE if step % INTERVAL == 0 else {})


def start_event(step: int, at: float, **other: Any) -> dict[str, Any]:
    topology = {"pid": 1, "world_size": 2, "zero_stage": 2, "sequence_parallel": 1, "device": "cpu"}
    return {"kind": "start", "time": at, "step": step, "tokens": step * 512} | topology | other


def events_of(last: int, begin: float, seconds: float = 1.0) -> list[dict[str, Any]]:
    """A start, `last` steps, and the checkpoints between them."""
    events = [start_event(0, begin)]
    for step in range(1, last + 1):
        events.append(step_event(step, begin + seconds * step))
        if step % INTERVAL == 0:
            layers = [{"layer": layer, "sigma_max": 0.5 + layer / 10, "mean_gate": step / 80} for layer in (1, 3)]
            events.append({"kind": "health", "time": begin + seconds * step, "step": step, "layers": layers})
            path = f"step_{step:08d}"
            events.append(
                {
                    "kind": "checkpoint",
                    "time": begin + seconds * step,
                    "step": step,
                    "path": path,
                    "seconds": 0.37,
                    "stall_seconds": 0.01,
                }
            )
    return events


def write_run(root: Path, name: str, events: list[dict[str, Any]], evaluated: int = 0, **files: Any) -> Path:
    """A run's folder.

    Args:
        evaluated: how many of its checkpoints have results.
        files: further JSON files, by name without ending: `finished={...}`.
    """
    folder = root / name
    folder.mkdir(parents=True)
    config = load_config(
        "smoke",
        [
            f"name={name}",
            f"train.steps={STEPS}",
            f"run.checkpoint_every={INTERVAL}",
            "evaluation.suites=[language,recall-quick]",
        ],
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config.resolved(), sort_keys=False))
    environment = {"run_id": name, "host": "node-a", "hardware": "2 CPU cores", "versions": {"torch": "2.13.0"}}
    for key, value in ({"environment": environment} | files).items():
        (folder / f"{key}.json").write_text(json.dumps(value))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for number, event in enumerate([event for event in events if event["kind"] == "checkpoint"]):
        write_checkpoint(folder, event["step"])
        if number < evaluated:
            write_results(folder, event["step"])
    return folder


def write_checkpoint(folder: Path, step: int) -> None:
    place = folder / "checkpoints" / f"step_{step:08d}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "complete.json").write_text(json.dumps({"step": step, "tokens": step * 512}))


def write_results(folder: Path, step: int) -> None:
    """Results of `language` and `recall-quick` on a checkpoint."""
    place = folder / "evals" / f"step_{step:08d}"
    place.mkdir(parents=True, exist_ok=True)
    common = {
        "step": step,
        "tokens": step * 512,
        "started": 1e9,
        "ended": 1e9 + 4.2,
        "adapted": False,
        "suite_sha256": "suite",
        "dataset_sha256": "dataset",
        "seed": 0,
        "tasks": [],
        "skipped": {},
        "decode": [],
    }
    bits = 2.0 + 8 / step
    language = {
        "bits_per_byte": bits,
        "unigram_bits_per_byte": 2.81,
        "gzip_bits_per_byte": 3.19,
        "perplexity": 99.5,
        "tokens": 51234,
        "bytes": 150123,
        "documents": 77,
    }
    metrics = {f"language/{key}": value for key, value in language.items()}
    parts = [{"source": None, "nats": [math.log(2) * bits * size for size in SIZES], "bytes": list(SIZES)}]
    contents = {"suite": "language", "rows": [], "language": parts, "metrics": metrics}
    (place / "language.json").write_text(json.dumps(common | contents))
    rows = [
        {"task": "sysprompt", "label": f"sysprompt-{pairs}", "pairs": pairs, "length": length, "open_accuracy": 0.5}
        | accuracy(round(1000 * min(1.0, step / (30 + length / 200 + pairs))), 1000, chance=1 / 32)
        for pairs in (4, 8)
        for length in LENGTHS
    ]
    metrics = {f"recall/{row['label']}/length-{row['length']}": row["accuracy"] for row in rows}
    (place / "recall-quick.json").write_text(
        json.dumps(common | {"suite": "recall-quick", "rows": rows, "metrics": metrics})
    )


def answers(correct: int, sequences: int = 250) -> list[int]:
    """Right answers of each sequence, so many in all, spread evenly: the sequences are hard for all models alike."""
    return [correct // sequences + (number < correct % sequences) for number in range(sequences)]


def write_finished(root: Path, name: str = "done") -> Path:
    begin = time.time() - 7200
    events = [*events_of(STEPS, begin), {"kind": "finish", "time": begin + 60, "step": STEPS, "tokens": STEPS * 512}]
    return write_run(root, name, events, evaluated=4, finished={"step": STEPS, "tokens": STEPS * 512})


def write_running(root: Path, name: str = "going", step: int = 23) -> Path:
    """A run that wrote its last event a moment ago; one checkpoint is evaluated, one is being evaluated."""
    folder = write_run(root, name, events_of(step, time.time() - 0.5 * step, 0.5), evaluated=1)
    lease = folder / "evals/step_00000020/language.lease"
    lease.parent.mkdir(parents=True)
    lease.write_text(json.dumps({"machine": "node-b/pid:[1]", "pid": 7, "claimed": time.time()}))
    touch(lease, seconds_ago=-3600)  # nobody renews it: good for as long as the tests last
    write_beats(folder, ["node-a", "node-d", "node-d"], step)
    return folder


def write_beats(folder: Path, nodes: list[str], step: int) -> None:
    """A sign of life of a rank on each of the nodes, good for as long as the tests last."""
    place = folder / "heartbeats"
    place.mkdir()
    for rank, node in enumerate(nodes):
        heartbeat = {
            "worker_group": "g",
            "rank": rank,
            "world": len(nodes),
            "node": node,
            "pid": 7,
            "step": step,
            "where": "",
        }
        path = place / f"rank_{rank:05d}.json"
        path.write_text(json.dumps(heartbeat | {"time": time.time()}))
        touch(path, seconds_ago=-3600)


def write_compared(root: Path) -> list[Path]:
    """Five runs to compare: three seeds at one learning rate, two at another, whose losses differ by the rate and the seed."""
    folders = []
    for rate, shift, seeds in ((0.003, 0.0, 3), (0.001, 0.5, 2)):
        for seed in range(seeds):
            folder = write_finished(root, f"rate-{rate}-seed-{seed}")
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["seed"] = seed
            config["train"]["learning_rate"] = rate
            (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            begin = time.time() - 7200
            events = [start_event(0, begin)]
            events += [step_event(step, begin + step, shift + 0.1 * (seed - 1)) for step in range(1, STEPS + 1)]
            (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
            path = folder / "evals/step_00000040/recall-quick.json"
            result = json.loads(path.read_text())
            for row in result["rows"]:
                correct = round(1000 * max(0.0, row["accuracy"] - 0.3 * shift - 0.02 * seed))
                row |= accuracy(correct, 1000, chance=1 / 32) | {"correct_by_sequence": answers(correct)}
                result["metrics"][f"recall/{row['label']}/length-{row['length']}"] = row["accuracy"]
            path.write_text(json.dumps(result))
            folders.append(folder)
    return folders


def write_branch(root: Path, parent: Path, step: int) -> Path:
    """A run that goes on from a checkpoint of `parent`, with everything that it had."""
    events = [start_event(step, time.time() - 900)]
    events += [step_event(s, time.time() - 900 + s, shift=-0.25) for s in range(step + 1, STEPS + 1)]
    folder = write_run(root, f"{parent.name}-branch", events)
    config = load_config("smoke", [])
    begins = Parent(
        run=parent.name,
        path=str(parent),
        run_id=parent.name,
        step=step,
        tokens=step * 512,
        what="everything",
        content="0" * 64,
    )
    Lineage(parent=begins, segments=(Segment.of(0, config),)).write(folder)
    (parent / "identity.json").write_text(json.dumps({"run_id": parent.name}))
    return folder


def write_crashed(root: Path, name: str = "broken") -> Path:
    """A run that was killed at step 17, started again at 10, skipped a step, went back once, and was killed for good at 25."""
    begin = time.time() - 3600
    events = events_of(17, begin)
    events.append(start_event(10, begin + 40))
    events += [step_event(step, begin + 40 + step, shift=0.125) for step in range(11, 19)]
    events.append({"kind": "skip", "time": begin + 59, "step": 19, "reason": "the gradient was not finite"})
    events.append(step_event(19, begin + 59) | {"loss": None, "loss_text": None, "grad_norm": None})
    events.append(
        {"kind": "rollback", "time": begin + 60, "step": 10, "from_step": 19, "reason": "1 step was not finite"}
    )
    events.append(
        {"kind": "warning", "time": begin + 61, "step": 12, "message": "layer 1: sigma_max is 1.2, above 1.001"}
    )
    events += [step_event(step, begin + 60 + step, shift=0.25) for step in range(11, 26)]
    folder = write_run(root, name, events, evaluated=1)
    write_checkpoint(folder, 20)
    with open(folder / "events.jsonl", "a") as file:
        file.write('{"kind": "step", "time": 17')  # torn by the crash
    given_up = {
        "kind": "evaluation_failed",
        "time": begin + 70,
        "step": 20,
        "suite": "language",
        "message": "no memory left",
    }
    (folder / "supervision.jsonl").write_text(json.dumps(given_up) + "\n")
    return folder


def write_study(root: Path, name: str = "mine") -> Path:
    """A study of three cells: one done, one failed, one waiting."""
    folder = root / name
    cells = [
        {
            "name": f"echo-{size}-s0",
            "family": "echo",
            "size": size,
            "steps": 32,
            "parameters": parameters,
            "tokens": 65536,
            "flops": 6.0 * parameters * 65536,
        }
        for size, parameters in (("60k", 61000), ("200k", 203000), ("500k", 498000))
    ]
    study = {"name": name, "question": "Which <b>scales</b> better?", "families": ["echo"]}
    files = {
        "plan.json": {"study": study, "cells": cells, "hours": 0.14},
        "runs/echo-60k-s0/cell.json": {"loss": 3.2164, "tokens_per_second": 7123.4, "seconds": 31.0, "host": "node-c"},
        "failures/echo-200k-s0.json": {"errors": ["first", "ran out of memory"], "time": 1e9},
        "fit.json": {
            "loss": "language/bits_per_byte",
            "laws": [{"family": "echo", "cells": 1, "E": None, "note": "too few"}],
        },
    }
    for path, value in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(value))
    (folder / "report.md").write_text(
        "# Study\n\nWhich?\n\n**Loss** (x): echo <i>wins</i>.\n**How sure**: not at all.\n\nrest\n"
    )
    figure = folder / "figures/loss_against_compute.png"
    figure.parent.mkdir()
    figure.write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def write_trunk_study(root: Path, name: str = "budgets") -> Path:
    """A study of a trunk that was trained to step 20 of the 30 that are needed; one cell has branched from it, one waits."""
    folder = write_study(root, name)
    trunk = write_run(folder / "runs", "echo-60k-trunk", events_of(20, time.time() - 900))
    branch = write_branch(folder / "runs", trunk, 10)
    plan = json.loads((folder / "plan.json").read_text())
    size = plan["cells"][0] | {"steps": STEPS}
    plan["study"]["question"] = "What does a larger budget give?"
    (folder / "report.md").write_text("# Study\n\nWhat?\n\n**Loss** (bits per byte): falls with the budget.\n\nrest\n")
    plan["trunks"] = [size | {"name": trunk.name, "kind": "trunk", "steps": STEPS}]
    plan["cells"] = [
        size | {"name": branch.name, "trunk": trunk.name, "branch_step": 10},
        size | {"name": "later", "trunk": trunk.name, "branch_step": 30},
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def touch(path: Path, seconds_ago: float) -> None:
    """Give a file the time it would have, had it been written so long ago."""
    os.utime(path, (time.time() - seconds_ago,) * 2)
