"""One run in three topologies, killed twice, against the same run undisturbed: the picture in docs/guides/training.md.

    python -m benchmarks.distributed.topology_curve data docs/figures/topology_curve.png

`data` holds the dataset of recipe `smoke` (`echo-lm prepare smoke`). Two minutes on two cores.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from echo_lm.evals.figures.style import figure
from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder

MODEL = ["model.ska.ridge=0.1", "train.learning_rate=1e-3"]
PHASES = [  # name, overrides, the step after which rank 0 is killed
    ("4 ranks, ZeRO 2", ["run.workers=4", "run.zero_stage=2"], 12),
    ("2 x 2 ranks, ZeRO 3", ["run.workers=4", "run.zero_stage=3", "run.sequence_parallel=2"], 22),
    ("1 rank, ZeRO 1", ["run.workers=1", "run.zero_stage=1"], None),
]


def kill_after(run: RunFolder, step: int) -> None:
    while True:
        events = read_events(run.events_file)
        if any(event["kind"] == "step" and event["step"] >= step for event in events):
            os.kill([event["pid"] for event in events if event["kind"] == "start"][-1], signal.SIGKILL)
            return
        time.sleep(0.02)


def train(folder: Path, data: Path, phases: list) -> RunFolder:
    run = RunFolder(folder)
    for _, overrides, kill in phases:
        config = load_config("smoke", [*MODEL, *overrides, "run.max_restarts=0"])
        run.prepare(config, data / config.data.name)
        if kill:
            threading.Thread(target=kill_after, args=(run, kill), daemon=True).start()
        try:
            launch(run, config)
        except UserError as error:
            if not kill:
                raise
            print(error)
    return run


def main() -> None:
    data, path = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        straight = train(Path(folder) / "straight", data, [("", ["run.workers=1"], None)])
        changed = train(Path(folder) / "changed", data, PHASES)
        expected = {event["step"]: event["loss"] for event in steps(read_events(straight.events_file))}
        events = read_events(changed.events_file)
    pieces: list[list[tuple[int, float]]] = []
    for event in events:
        if event["kind"] == "start":
            pieces.append([])
        elif event["kind"] == "step":
            pieces[-1].append((event["step"], event["loss"]))
    worst = max(abs(loss / expected[step] - 1) for piece in pieces for step, loss in piece)
    with figure(
        path, f"One run, three topologies: within {worst:.0e} of the undisturbed one", "step", "loss (nats)"
    ) as axes:
        axes.plot(list(expected), list(expected.values()), color="0.75", linewidth=6, label="undisturbed, 1 rank")
        for (name, _, kill), piece in zip(PHASES, pieces, strict=True):
            axes.plot(*zip(*piece, strict=True), marker=".", label=name + (", killed" if kill else ""))
        axes.legend()
    print(json.dumps({"largest_relative_distance": worst, "starts": [piece[0][0] - 1 for piece in pieces]}))


if __name__ == "__main__":
    main()
