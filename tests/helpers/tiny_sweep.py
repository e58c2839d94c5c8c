"""A recall sweep that two CPU cores train in a second, for the tests of tables."""

from pathlib import Path

import yaml

from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.runs import runs_of

SMALL = {"d_model": 16, "layers": ["mamba2"], "feedforward": {"kind": "swiglu", "width": 8}, "mamba2": {"headdim": 16}}
SWEEP = {
    "name": "tiny",
    "training": {"steps": 3, "batch_sequences": 4, "lengths": [32], "pairs": [1]},
    "learning_rates": [0.001, 0.01],
    "seeds": [0, 1],
    "arms": {
        "one": {"preset": "paper-1m-mamba2", "model": SMALL},
        "two": {"preset": "paper-1m-mamba2", "model": SMALL},
    },
    "recall": [
        {"task": "niah", "pairs": [1], "lengths": [32, 64], "queries": 40},
        {"task": "mqar", "pairs": [2], "lengths": [32], "queries": 20},
    ],
    "batch_tokens": 256,
}
SWEEP["arms"]["two"]["training"] = {"weight_decay": 0.1}
# A model a cell.
IN_TASK = {
    "each_cell": {"tokens": 3000, "batch_tokens": 100},
    "learning_rates": [0.01],
    "seeds": [0],
    "arms": {"one": SWEEP["arms"]["one"], "two": SWEEP["arms"]["two"] | {"only": [[2, 4]], "tokens": 6000}},
    "recall": [{"task": "mqar", "pairs": [1, 2], "gaps": [4, 16], "queries": 20}],
}


def sweep_file(folder: Path, **changes) -> Path:
    """The table with changes, in a file of its name."""
    sweep = SWEEP | changes
    path = folder / f"{sweep['name']}.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def ids(folder: Path, **changes) -> list[str]:
    """Of the runs of the sweep with changes."""
    return [run.id for run in runs_of(load_sweep(sweep_file(folder, **changes)))]
