"""Held-out loss along a constant-rate run: its weights, their moving average, the mean of five checkpoints, and cooldowns.

    python -m benchmarks.training.averages_of_weights data benchmarks/results/NAME.json docs/figures/averages_of_weights.png

`data` holds the dataset of recipe `smoke` (`echo-lm prepare smoke`), on whose text alone the runs are trained. One CPU process,
minutes.
"""

import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

from safetensors.torch import save_file

from echo_lm.evals.figures.style import figure
from echo_lm.evals.layout import complete_checkpoints
from echo_lm.evals.runner import run_suite
from echo_lm.models.common.files import write_json
from echo_lm.models.common.run_layout import EMA, MODEL
from echo_lm.models.pretrained import WEIGHTS
from echo_lm.pipeline.checkpoint.average import average_weights
from echo_lm.pipeline.checkpoint.format import latest_checkpoint
from echo_lm.pipeline.config import RunConfig, load_config, parse_config
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.run.folder import RunFolder, describe_environment
from echo_lm.pipeline.run.start import branch_config

STEPS, EVERY, MEASURED, AVERAGED, DECAY = (
    480,
    12,
    60,
    5,
    0.97,
)  # every so many steps a checkpoint, a measurement; of the average
COOLED = (120, 240, 480)  # steps of the runs whose last tenth is a cooldown
OVERRIDES = [
    "name=constant",
    "run.workers=1",
    "mixture.recall=null",
    "train.schedule=constant",
    f"train.steps={STEPS}",
    "train.warmup_tokens=5120",
    "train.final_learning_rate_fraction=0",
    f"train.ema_decay={DECAY}",
    f"run.checkpoint_every={EVERY}",
]


def trained(root: Path, data: Path, config: RunConfig) -> RunFolder:
    run = RunFolder(root / config.name)
    run.prepare(config, data / config.data.name)
    launch(run, config)
    return run


def bits_per_byte(model: Path, run: RunFolder) -> float:
    """Held-out bits per byte of a model folder."""
    result = run_suite(model, "language", run.data_folder(), run.path / "measured.json", step=0, tokens=0)
    (run.path / "measured.json").unlink()
    return result["metrics"]["language/bits_per_byte"]


def mean_of(folders: list[Path], place: Path) -> Path:
    """A model folder with the mean of the models of some checkpoints."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folders[-1] / MODEL, place)
    save_file(average_weights([folder / MODEL for folder in folders]), place / WEIGHTS, {"format": "pt"})
    return place


def main() -> None:
    data, rows_file, picture = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    rows, cooled = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = trained(root, data, load_config("smoke", OVERRIDES))
        checkpoints = {record["step"]: path for path, record in complete_checkpoints(run.path)}
        for step in range(MEASURED, STEPS + 1, MEASURED):
            last = [checkpoints[step - EVERY * age] for age in reversed(range(AVERAGED))]
            row = {"step": step, "weights": bits_per_byte(last[-1] / MODEL, run)}
            row |= {"moving_average": bits_per_byte(last[-1] / EMA, run)}
            row |= {"mean_of_checkpoints": bits_per_byte(mean_of(last, root / "mean"), run)}
            rows.append(row)
            print(row, flush=True)
        for steps in COOLED:
            values = branch_config(run, steps * 9 // 10, "everything") | {"name": f"cooldown-{steps}"}
            values["train"] |= {"steps": steps, "schedule": "warmup-stable-decay", "decay_steps": steps // 10}
            branch = trained(root, data, parse_config(values, "the cooldown"))
            row = {"step": steps, "weights": bits_per_byte(latest_checkpoint(branch) / MODEL, branch)}
            cooled.append(row | {"moving_average": bits_per_byte(latest_checkpoint(branch) / EMA, branch)})
            print(cooled[-1], flush=True)
    environment = {"date": str(date.today())} | describe_environment()
    settings = {"steps": STEPS, "checkpoint_every": EVERY, "averaged": AVERAGED, "ema_decay": DECAY}
    write_json(rows_file, {"environment": environment, "settings": settings, "constant": rows, "cooldowns": cooled})
    with figure(picture, "Averages of weights, and cooldowns", "steps", "held-out bits per byte") as axes:
        labels = {
            "weights": "weights at a constant rate",
            "moving_average": f"their moving average, decay {DECAY}",
            "mean_of_checkpoints": f"mean of {AVERAGED} checkpoints, {EVERY} steps apart",
        }
        for name, label in labels.items():
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], ".-", label=label)
        axes.plot(
            [row["step"] for row in cooled],
            [row["weights"] for row in cooled],
            "ks",
            label="cooldown in the last tenth",
        )
        axes.legend()


if __name__ == "__main__":
    main()
