"""Which runs of a sweep are missing, and which train side by side; the files of their results."""

import json
from pathlib import Path

import pytest

from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.plan import chosen_runs, missing_runs, next_group
from echo_lm.evals.sweeps.result_files import Results, SweepFolder, write_joined, write_run
from echo_lm.evals.sweeps.runs import is_settled, runs_of
from echo_lm.models.common.errors import UserError
from tests.helpers.tiny_sweep import IN_TASK, sweep_file


def two_rates(folder: Path) -> Path:
    """A sweep with a model a cell, two rates and two seeds, to which 90% are enough."""
    each_cell = IN_TASK["each_cell"] | {"enough": 0.9}
    return sweep_file(folder, **IN_TASK | {"learning_rates": [0.01, 0.02], "seeds": [0, 1], "each_cell": each_cell})


def test_results_settle_cells_by_their_id(tmp_path):
    """Under an old name of the arm they say the same; another arm's, another seed's and another cell's are not meant."""
    sweep = load_sweep(two_rates(tmp_path))
    runs = runs_of(sweep)
    done = next(run for run in runs if run.arm == "one" and run.seed == 1)
    found = {done.id: {"id": done.id, "arm": "old name", "seed": 1, "rows": [{"queries": 20, "correct": 18}]}}
    settled = [run for run in runs if is_settled(sweep, run, runs, found)]
    assert [(run.arm, run.seed, run.cells, run.training.learning_rate) for run in settled] == [
        ("one", 1, done.cells, 0.01), ("one", 1, done.cells, 0.02)
    ]  # fmt: skip
    assert missing_runs(sweep, runs, runs, found) == [run for run in runs if run not in settled]
    found[done.id]["rows"][0]["correct"] = 17
    assert missing_runs(sweep, runs, runs, found) == [run for run in runs if run is not done]


def test_side_by_side_train_different_cells(tmp_path):
    """Not two rates of one, nor one whose cell is at work; where nothing is spared it does not matter."""
    sweep = load_sweep(two_rates(tmp_path))
    runs = runs_of(sweep)
    group = next_group(sweep, runs, 12)
    assert len({(run.arm, run.seed, run.cells[0].label, run.cells[0].length) for run in group}) == len(group) == 10
    assert next_group(sweep, runs, 3) == runs[:3]
    assert next_group(sweep, runs, 12, started=group) == [], "the other rates wait for what the first one answers"
    plain = load_sweep(sweep_file(tmp_path, seeds=[0]))
    planned = runs_of(plain)
    assert next_group(plain, planned, 12) == planned
    assert next_group(plain, planned, 12, started=planned[:1]) == planned[1:]


def test_chosen_are_the_runs_of_the_named_arms(tmp_path):
    sweep = load_sweep(sweep_file(tmp_path))
    planned = runs_of(sweep)
    assert chosen_runs(sweep, planned) == planned
    assert chosen_runs(sweep, planned, ["two"]) == [run for run in planned if run.arm == "two"]
    with pytest.raises(UserError, match="sweep tiny has no arm 'tow': did you mean 'two'"):
        chosen_runs(sweep, planned, ["tow"])


def test_results_are_read_from_files_of_runs_and_from_joined_ones(tmp_path):
    folder = SweepFolder(tmp_path, "tiny")
    write_joined(tmp_path / "tiny.json", "tiny", [{"id": "a", "rows": []}])
    write_joined(tmp_path / "tiny.1-of-3.json", "tiny", [{"id": "b"}, {"id": "a", "rows": ["later"]}])
    (tmp_path / "tiny-more.json").write_text("not read")
    write_run(folder, {"id": "c"})
    results = Results(folder)
    # Of a run in two files the first one by name counts.
    assert results.found == {"a": {"id": "a", "rows": ["later"]}, "b": {"id": "b"}, "c": {"id": "c"}}
    write_run(folder, {"id": "d"})
    assert set(results.refresh()) == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tiny.json", '{"runs": [', "tiny.json is not valid JSON"),
        ("tiny.0-of-2.json", json.dumps(["no"]), "tiny.0-of-2.json holds no runs"),
        ("tiny/runs/a.json", json.dumps({"id": "b"}), "a.json holds no run of this name"),
    ],
)
def test_a_damaged_result_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        Results(SweepFolder(tmp_path, "tiny"))
