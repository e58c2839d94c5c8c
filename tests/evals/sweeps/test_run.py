"""The command that runs a sweep: processes share a sweep, stop in time and refuse what is wrong."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from echo_lm.evals.sweeps import run as sweep_run
from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.run import next_group
from echo_lm.evals.sweeps.runs import is_settled, runs_of
from tests.helpers.tiny_sweep import IN_TASK, sweep_file


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "echo_lm.evals.sweeps.run", *map(str, arguments)], capture_output=True, text=True
    )


def test_parts_share_a_table_and_nothing_runs_twice(tmp_path):
    path = sweep_file(tmp_path, seeds=[0])
    wanted = [run.id for run in runs_of(load_sweep(path))]
    out = tmp_path / "out"

    def found(name: str) -> list[str]:
        return [run["id"] for run in json.loads((out / name).read_text())["runs"]]

    first = command(path, "--out", out, "--device", "cpu", "--part", "1/3")
    assert first.returncode == 0, first.stderr
    assert found("tiny.1-of-3.json") == wanted[1::3]
    rest = command(path, "--out", out, "--device", "cpu")
    assert rest.returncode == 0, rest.stderr
    assert found("tiny.json") == [run for run in wanted if run not in wanted[1::3]]
    # Of some arms, their own runs are shared out.
    second = command(path, "--out", tmp_path / "two", "--device", "cpu", "--arms", "two", "--part", "1/2")
    assert second.returncode == 0, second.stderr
    found_two = json.loads((tmp_path / "two" / "tiny.1-of-2.json").read_text())["runs"]
    assert [run["id"] for run in found_two] == wanted[3::4]
    # Another way to share finds all of it done, and another table's name is not taken for a part.
    (out / "tiny-more.0-of-2.json").write_text("not read")
    again = command(path, "--out", out, "--device", "cpu", "--part", "0/2")
    assert "0 runs to do" in again.stdout
    assert not (out / "tiny.0-of-2.json").exists()


def test_a_start_always_does_something_and_stops_in_time(tmp_path):
    path = sweep_file(tmp_path, seeds=[0])
    told = command(path, "--out", tmp_path / "out", "--device", "cpu", "--seconds", "0")
    assert "stopped: 3 runs are left" in told.stdout
    assert len(json.loads((tmp_path / "out" / "tiny.json").read_text())["runs"]) == 1


def test_no_group_begins_that_would_end_too_late(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def ten_seconds(sweep, group, **options):
        clock.now += 10
        return [{"id": run.id, "rows": [], "final_loss": 0.0, "tokens": 0} for run in group]

    monkeypatch.setattr(sweep_run, "measure_together", ten_seconds)
    monkeypatch.setattr(
        sweep_run, "time", SimpleNamespace(monotonic=lambda: clock.now, strftime=lambda form: "2026-01-01")
    )
    path = sweep_file(tmp_path, seeds=[0])
    options = ["run", str(path), "--out", str(tmp_path), "--device", "cpu", "--seconds", "25"]
    monkeypatch.setattr(sys, "argv", options)
    sweep_run.main()
    assert len(json.loads((tmp_path / "tiny.json").read_text())["runs"]) == 2  # a third would end after 30 seconds


def two_rates(folder: Path) -> Path:
    """A sweep with a model a cell, two rates and two seeds, to which 90% are enough."""
    each_cell = IN_TASK["each_cell"] | {"enough": 0.9}
    return sweep_file(folder, **IN_TASK | {"learning_rates": [0.01, 0.02], "seeds": [0, 1], "each_cell": each_cell})


def test_a_cell_that_one_rate_answers_gets_no_other(tmp_path, monkeypatch, capsys):

    def answers_one_pair(sweep, group, **options):
        (run,) = group
        (cell,) = run.cells
        row = cell.described() | {"queries": 20, "correct": 18 if cell.pairs == 1 else 17}
        return [{"id": run.id, "arm": run.arm, "seed": run.seed, "rows": [row], "final_loss": 0.0, "tokens": 0}]

    monkeypatch.setattr(sweep_run, "measure_together", answers_one_pair)
    path = two_rates(tmp_path)
    command_line = ["run", str(path), "--out", str(tmp_path), "--device", "cpu", "--arms", "one"]
    monkeypatch.setattr(sys, "argv", command_line)
    sweep_run.main()
    found = {run["id"] for run in json.loads((tmp_path / "tiny.json").read_text())["runs"]}
    trained = [run for run in runs_of(load_sweep(path)) if run.id in found]
    at = Counter((run.seed, run.cells[0].pairs, run.training.learning_rate) for run in trained)
    # Two gaps each; a seed of its own is no other rate.
    assert at == {(seed, *rest): 2 for seed in (0, 1) for rest in ((1, 0.01), (2, 0.01), (2, 0.02))}
    capsys.readouterr()
    sweep_run.main()
    assert "0 runs to do, 16 there or not needed" in capsys.readouterr().out


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
    found[done.id]["rows"][0]["correct"] = 17
    assert not any(is_settled(sweep, run, runs, found) for run in runs)


def test_side_by_side_train_different_cells(tmp_path, monkeypatch):
    """Not two rates of one; where nothing is spared it does not matter."""
    sweep = load_sweep(two_rates(tmp_path))
    runs = runs_of(sweep)
    group = next_group(sweep, runs, 12)
    assert len({(run.arm, run.seed, run.cells[0].label, run.cells[0].length) for run in group}) == len(group) == 10
    assert next_group(sweep, runs, 3) == runs[:3]
    plain = load_sweep(sweep_file(tmp_path, seeds=[0]))
    assert next_group(plain, runs_of(plain), 12) == runs_of(plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "2/2"], "--part is '2/2'"),
        (["--part", "half"], "--part is 'half'"),
        (["--arms", "three"], "has no arm 'three'"),
        (["--together", "0"], "--together is 0"),
    ],
)
def test_bad_arguments_give_one_line_and_code_2(tmp_path, arguments, message):
    told = command(sweep_file(tmp_path), "--out", tmp_path, "--device", "cpu", *arguments)
    assert told.returncode == 2
    assert message in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_a_damaged_result_file_is_not_written_over(tmp_path):
    (tmp_path / "tiny.0-of-2.json").write_text('{"runs": [')
    told = command(sweep_file(tmp_path), "--out", tmp_path, "--device", "cpu")
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)
    assert "tiny.0-of-2.json is not valid JSON" in told.stderr
