"""Accuracy against width and bytes of state, from results made by hand."""

import json
import re

import pytest
import torch
import yaml

from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.report import write_report
from echo_lm.evals.sweeps.runs import runs_of
from echo_lm.models import build_model, prefill
from tests.helpers.tiny_sweep import SMALL
from tests.helpers.tiny_sweep import SWEEP as TINY

ATTENTION = {
    "preset": "paper-1m-hybrid",
    "model": SMALL | {"layers": ["attention"], "mamba2": None, "attention": {"num_heads": 1}},
}
MAMBA2 = {"preset": "paper-1m-mamba2", "model": SMALL}


def wide(arm, width):
    return arm | {"model": arm["model"] | {"d_model": width}}


SIZES = TINY | {
    "arms": {
        "mamba2-16": MAMBA2,
        "mamba2-32": wide(MAMBA2, 32),
        "attention-16": ATTENTION,
        "attention-32": wide(ATTENTION, 32),
    },
    "learning_rates": [0.01],
    "recall": [{"task": "mqar", "pairs": [2], "lengths": [32, 128], "queries": 100}],
}
RIGHT = {"mamba2-16": 40, "mamba2-32": 60, "attention-16": 80}  # of 100; the other one did not run


def result_of(sweep, run):
    rows = [
        cell.described() | {"queries": 100, "correct": RIGHT[run.arm] - cell.length // 32, "open_correct": 0}
        for cell in run.cells
    ]
    told = {"id": run.id, "arm": run.arm, "seed": run.seed, "learning_rate": 0.01, "parameters": 1, "diverged": False}
    return told | {"rows": rows, "hardware": "a GPU", "torch": "2", "date": "2026-01-01", "commit": "abc"}


def write(folder, sweep):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    loaded = load_sweep(path)
    runs = [result_of(loaded, run) for run in runs_of(loaded) if run.arm in RIGHT]
    (folder / "tiny.json").write_text(json.dumps({"table": "tiny", "runs": runs}))
    return write_report(path, folder, folder / "tiny").read_text(), runs_of(loaded)


def test_every_arm_has_its_width_and_the_state_that_it_has_at_each_length(tmp_path):
    page, runs = write(tmp_path, SIZES)
    section = page[page.index("## Width and state") :]
    lines = [row.strip("| ").split(" | ") for row in section.splitlines()[4:9]]
    assert lines[0] == ["family", "width", "2 pairs in 32 tokens", "2 pairs in 128 tokens"]
    assert [line[:2] for line in lines[2:]] == [["mamba2", "16"], ["mamba2", "32"], ["attention", "16"]]
    assert [cell.split()[0] for cell in lines[2][2:]] == ["39.0", "36.0"]  # both seeds
    measured = {}
    for run in runs:
        for length in (32, 128):
            _, cache = prefill(build_model(run.config), torch.zeros(1, length, dtype=torch.int64))
            measured[run.arm, length] = cache.nbytes()
    for line in lines[2:]:
        for cell, length in zip(line[2:], (32, 128), strict=True):
            shown, unit = re.search(r"; ([\d.]+) (\w+)$", cell).groups()
            size = measured[f"{line[0]}-{line[1]}", length]
            assert float(shown) * {"B": 1, "KiB": 1024}[unit] == pytest.approx(size, rel=5e-3)
    figures = {path.name: path.read_bytes() for path in (tmp_path / "tiny" / "figures").iterdir()}
    assert {"tiny_width.png", "tiny_state.png"} < set(figures)
    write(tmp_path, SIZES)
    assert {path.name: path.read_bytes() for path in (tmp_path / "tiny" / "figures").iterdir()} == figures


def test_arms_of_one_size_have_no_such_section(tmp_path):
    arms = {name: arm for name, arm in SIZES["arms"].items() if name.endswith("-16")}
    page, _ = write(tmp_path, SIZES | {"arms": arms})
    assert "## Width and state" not in page
    assert not {path.name for path in (tmp_path / "tiny" / "figures").iterdir()} & {"tiny_width.png", "tiny_state.png"}
