"""Budgets of 1, 2, 4, 8 and 16 units: one trunk with a cooldown for each, against a run for each with the same schedule.

    python -m benchmarks.training.trunk_and_cooldowns data benchmarks/results/NAME.json docs/figures/trunk_and_cooldowns.png

`data` holds the dataset of recipe `smoke` (`echo-lm prepare smoke`). The moving average of the trunk's weights and the average of
its last five checkpoints are measured beside them. Half an hour on two busy cores.
"""

import sys
import tempfile
from datetime import date
from pathlib import Path

from echo_lm.evals.figures.style import figure
from echo_lm.evals.runner import run_suite
from echo_lm.models.common.files import write_json
from echo_lm.models.common.run_layout import EMA, MODEL
from echo_lm.pipeline.checkpoint.average import average_run
from echo_lm.pipeline.checkpoint.format import latest_checkpoint
from echo_lm.pipeline.config import RunConfig, load_config, parse_config
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder, describe_environment
from echo_lm.pipeline.run.start import branch_config

UNIT, BUDGETS, COOLDOWN = 10, (1, 2, 4, 8, 16), 0.1  # steps; units; share of the steps
COMMON = ["run.workers=1", "train.warmup_tokens=2048", "train.final_learning_rate_fraction=0", "mixture.recall=null"]


def cooldown(units: int) -> dict:
    """The `train` section of a run of so many units that cools down at its end."""
    last = units * UNIT
    return {"steps": last, "schedule": "warmup-stable-decay", "decay_steps": round(COOLDOWN * last), "ema_decay": None}


def trained(root: Path, data: Path, config: RunConfig) -> RunFolder:
    run = RunFolder(root / config.name)
    run.prepare(config, data / config.data.name)
    launch(run, config)
    return run


def bits_per_byte(run: RunFolder, part: str = MODEL) -> float:
    """Held-out bits per byte of the last checkpoint."""
    output = run.path / "evals" / f"{part}.json"
    result = run_suite(latest_checkpoint(run) / part, "language", run.data_folder(), output, step=0, tokens=0)
    return result["metrics"]["language/bits_per_byte"]


def main() -> None:
    data, rows_file, picture = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        last = round((1 - COOLDOWN) * BUDGETS[-1] * UNIT)
        every = round((1 - COOLDOWN) * UNIT)
        overrides = [
            "train.schedule=constant",
            f"train.steps={last}",
            f"run.checkpoint_every={every}",
            "train.ema_decay=0.9",
        ]
        trunk = trained(root, data, load_config("smoke", [*COMMON, *overrides, "name=trunk"]))
        for units in BUDGETS:
            begin = round((1 - COOLDOWN) * units * UNIT)
            values = branch_config(trunk, begin, "everything") | {"name": f"branch-{units}"}
            values["train"] |= cooldown(units)
            branch = trained(root, data, parse_config(values, "branch"))
            changes = [f"train.{key}={'null' if value is None else value}" for key, value in cooldown(units).items()]
            separate = trained(root, data, load_config("smoke", [*COMMON, *changes, f"name=separate-{units}"]))
            losses = [steps(read_events(run.events_file))[-1]["loss"] for run in (branch, separate)]
            row = {"units": units, "steps": units * UNIT, "steps_of_branch": units * UNIT - begin}
            row |= {"branch_loss": losses[0], "separate_loss": losses[1]}
            row |= {"branch_bits_per_byte": bits_per_byte(branch), "separate_bits_per_byte": bits_per_byte(separate)}
            rows.append(row)
            print(row, flush=True)
        averages = {
            "trunk, last weights": bits_per_byte(trunk),
            "trunk, moving average": bits_per_byte(trunk, EMA),
            "trunk, mean of 5 checkpoints": bits_per_byte(average_run(trunk, 5)),
            "cooldown": rows[-1]["branch_bits_per_byte"],
        }
    together = last + sum(row["steps_of_branch"] for row in rows)
    apart = sum(row["steps"] for row in rows)
    print(f"{together} steps instead of {apart}: {together / apart:.1%}", averages)
    environment = {"date": str(date.today())} | describe_environment()
    result = {"rows": rows, "averages": averages, "trunk_steps": last, "steps_together": together, "steps_apart": apart}
    write_json(rows_file, {"environment": environment} | result)
    tokens = load_config("smoke", COMMON).train.batch_tokens
    with figure(picture, "Trunk with cooldowns, and separate runs", "tokens", "held-out bits per byte") as axes:
        x = [row["steps"] * tokens for row in rows]
        axes.plot(
            x, [row["separate_bits_per_byte"] for row in rows], "o", ms=11, mfc="none", label=f"separate, {apart} steps"
        )
        axes.plot(
            x, [row["branch_bits_per_byte"] for row in rows], ".-", label=f"trunk and cooldowns, {together} steps"
        )
        for (name, value), marker in zip(list(averages.items())[:3], "sv^", strict=True):
            axes.plot([last * tokens], [value], marker, label=name)
        axes.set_xscale("log", base=2)
        axes.legend()


if __name__ == "__main__":
    main()
