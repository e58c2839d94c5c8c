"""The report of a recall sweep, from results made by hand: every number in it is known."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from statsmodels.stats.proportion import proportion_confint

from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.report import write_report
from echo_lm.evals.sweeps.runs import runs_of

COMMAND_LINE = [sys.executable, "-c", "from echo_lm.orchestration.cli.main import main; main()"]
SEEDS, RATES = (0, 1, 2), (0.001, 0.01)
SWEEP = {
    "name": "tiny",
    "training": {"steps": 3, "lengths": [32], "pairs": [1]},
    "learning_rates": list(RATES),
    "seeds": list(SEEDS),
    "arms": {"short": {"preset": "paper-1m-mamba2", "longest": 64}, "long": {"preset": "paper-1m-l2"}},
    "recall": [
        {"task": "niah", "pairs": [1], "lengths": [32, 64, 128], "queries": 100},
        {"task": "mqar", "pairs": [2], "lengths": [32], "queries": 100},
        {"task": "economy", "pairs": [3], "lengths": [64], "queries": 100},
    ],
    "mean_of": ["niah", "mqar"],
    "published": {
        "source": "A Paper",
        "means": {"SSM": {"niah": 52.0, "mqar": 55.1}},
        "cells": [{"task": "niah", "pairs": 1, "length": 64, "percent": {"SSM": 2.0}}],
    },
}
# Right answers of 100 in every cell but economy's, by arm, rate and seed. The best rate of "short" has the best mean, not the best
# seed; that of "long" the worse economy.
RIGHT = {
    ("short", 0.001): (90, 20, 22),
    ("short", 0.01): (50, 60, 55),
    ("long", 0.001): (95, 97, 99),
    ("long", 0.01): (40, 41, 42),
}
ECONOMY = {0.001: 10, 0.01: 90}


def result_of(sweep, run) -> dict:
    right = RIGHT[run.arm, run.training.learning_rate][run.seed]
    rows = []
    for cell in sweep.cells:
        if sweep.evaluates(run.arm, cell):
            correct = ECONOMY[run.training.learning_rate] if cell.name == "economy" else right
            if cell.length == 128:
                correct = 1
            rows.append(cell.described() | {"queries": 100, "correct": correct, "open_correct": 0})
    return {
        "id": run.id,
        "arm": run.arm,
        "seed": run.seed,
        "learning_rate": run.training.learning_rate,
        "parameters": 123_456,
        "final_loss": 0.1,
        "losses": [0.1],
        "diverged": False,
        "rows": rows,
        "hardware": "Some GPU",
        "torch": "2.0",
        "date": f"2026-01-0{run.seed + 1}",
        "commit": "abc1234",
    }


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SWEEP))
    return path


@pytest.fixture
def report(sweep, tmp_path, monkeypatch):
    """Write results that `change` was let at, in two files as two processes leave them; returns the page and the JSON."""

    def write(change=lambda results: results, make=result_of):
        loaded = load_sweep(sweep)
        results = change([make(loaded, run) for run in runs_of(loaded)])
        raw = tmp_path / "raw"
        raw.mkdir(exist_ok=True)
        for part in (0, 1):
            content = {"table": "tiny", "runs": results[part::2]}
            (raw / f"tiny.{part}-of-2.json").write_text(json.dumps(content))
        page = write_report(sweep, raw, raw / "tiny")
        return page.read_text(), json.loads((raw / "tiny" / "tiny.json").read_text())

    return write


def line(page: str, section: str, start: str) -> list[str]:
    """The cells of the first line of a sweep after `section` that begins with `start`."""
    found = next(row for row in page[page.index(section) :].splitlines() if row.startswith(f"| {start} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_best_mean_chooses_the_rate_and_medians_have_ranges(report):
    page, content = report()
    # The cell at 128 tokens, which "short" is not asked, is in nobody's mean; economy is shown and chooses nothing.
    assert line(page, "## Accuracy by task", "short") == [
        "short", "123,456", "0.01", "3", "55.0 (50.0 to 60.0)", "55.0 (50.0 to 60.0)", "90.0 (90.0 to 90.0)", "55.0 (50.0 to 60.0)"
    ]  # fmt: skip
    assert line(page, "## Accuracy by task", "long")[2:] == [
        "0.001", "3", "97.0 (95.0 to 99.0)", "97.0 (95.0 to 99.0)", "10.0 (10.0 to 10.0)", "97.0 (95.0 to 99.0)"
    ]  # fmt: skip
    assert "Means are over the 4 of 5 cells that every arm is evaluated on." in page
    assert line(page, "## Learning rates tried", "short") == ["short", "44.0 (3)", "**55.0 (3)**"]
    assert content["arms"]["short"]["learning_rate"] == 0.01
    assert content["arms"]["long"]["mean_by_rate_and_seed"]["0.01"] == {"0": 0.40, "1": 0.41, "2": 0.42}
    assert "Not complete" not in page


def test_intervals_are_wilsons_of_all_seeds(report):
    page, content = report()
    low, high = proportion_confint(97 * 3, 300, method="wilson")
    assert line(page, "niah-1:\n", "long")[2] == f"97.0 ({100 * low:.1f} to {100 * high:.1f})"
    assert line(page, "niah-1:\n", "queries, at most")[1:] == ["300", "300", "300"]
    assert line(page, "niah-1:\n", "short")[3] == "-"
    assert "Not evaluated: short beyond 64 tokens." in page
    row = next(row for row in content["rows"] if (row["arm"], row["seed"], row["length"]) == ("long", 1, 64))
    low, high = proportion_confint(97, 100, method="wilson")
    assert row == {
        "arm": "long", "task": "niah", "label": "niah-1", "pairs": 1, "length": 64, "options": {}, "seed": 1, "queries": 100,
        "correct": 97, "low": pytest.approx(low), "high": pytest.approx(high),
    }  # fmt: skip
    assert len(content["rows"]) == 3 * (4 + 5)


def test_published_numbers_and_chance_stand_beside_ours(report):
    page, content = report()
    assert line(page, "## Accuracy by task", "*SSM, published*")[4:] == ["52.0", "55.1", "-", "53.5"]
    assert line(page, "## Accuracy by task", "chance")[4:] == ["3.1", "3.1", "12.5", "3.1"]
    single = page[page.index("Single cells beside those of A Paper") :]
    assert line(single, "| arm | niah, 1 at 64 |", "long")[1].startswith("97.0 (")
    assert line(single, "| arm | niah, 1 at 64 |", "*SSM, published*")[1] == "2.0"
    assert content["published"]["source"] == "A Paper"
    assert content["chance"]["economy"] == 1 / 8


def test_where_and_when_it_ran_and_how_to_run_it_again(report, tmp_path):
    page, content = report()
    assert "All seeds are evaluated on the same sequences." in page
    assert "12 of 12 runs, on Some GPU, torch 2.0, 2026-01-01 and 2026-01-03, commit abc1234." in page
    assert "\n    echo-lm sweep run tiny.yaml" in page
    assert content["hardware"] == ["Some GPU"]
    assert str(tmp_path) not in page + json.dumps(content)


def test_missing_runs_are_said_and_do_not_decide(report):
    def interrupted(results):
        return [run for run in results if run["arm"] == "long" and (run["learning_rate"], run["seed"]) != (0.001, 2)]

    page, content = report(interrupted)
    assert "long: missing seed 2 at 0.001." in page
    assert "short: no run is there." in page
    assert line(page, "## Accuracy by task", "short") == ["short", *"-------"]
    assert line(page, "## Accuracy by task", "long")[3:5] == ["2", "96.0 (95.0 to 97.0)"]
    assert content["runs"] == {"planned": 12, "found": 5}
    assert content["arms"]["short"]["learning_rate"] is None


def test_runs_that_diverged_count_and_are_said(report):
    def diverge(results):
        for run in results:
            if (run["arm"], run["learning_rate"], run["seed"]) == ("long", 0.001, 1):
                run["diverged"], run["final_loss"] = True, None
                for row in run["rows"]:
                    row["correct"] = 0
        return results

    page, content = report(diverge)
    assert "long: diverged seed 1 at 0.001." in page
    assert line(page, "## Accuracy by task", "long")[4] == "95.0 (0.0 to 99.0)"
    assert content["arms"]["long"]["diverged"] == [{"learning_rate": 0.001, "seed": 1}]


def test_results_of_another_version_of_the_table_are_left_out(report):
    def stale(results):
        return [*results, results[-1] | {"id": "0" * 16}]

    page, _ = report(stale)
    assert "1 runs of an earlier version of the sweep are left out." in page
    assert "12 of 12 runs" in page


def test_prose_and_bytes_survive_and_old_figures_do_not(report, tmp_path):
    out = tmp_path / "raw" / "tiny"
    page, _ = report()
    figures = {path.name: path.read_bytes() for path in (out / "figures").iterdir()}
    assert set(figures) == {"tiny_mean.png", "tiny_tasks.png", "tiny_niah-1.png"}
    assert all(f"](figures/{name})" in page for name in figures)
    (out / "tiny.notes.md").write_text("What people found.\n")
    (out / "figures" / "tiny_niah-9.png").write_bytes(b"old")
    (out / "figures" / "tiny-more_mean.png").write_bytes(b"of another table")
    again, _ = report()
    assert "\n\nWhat people found.\n\n" in again
    assert again.replace("What people found.\n\n", "") == page
    assert (out / "tiny.notes.md").read_text() == "What people found.\n"
    kept = {path.name: path.read_bytes() for path in (out / "figures").iterdir()}
    assert kept == figures | {"tiny-more_mean.png": b"of another table"}


def test_more_arms_than_markers_take_several_figures(sweep, report, tmp_path):
    arms = {f"arm-{i}": {"preset": "paper-1m-mamba2", "training": {"weight_decay": i / 10}} for i in range(10)}
    sweep.write_text(yaml.safe_dump(SWEEP | {"arms": arms}))
    RIGHT.update({(name, rate): (50, 50, 50) for name in arms for rate in RATES})
    report()
    drawn = {path.name for path in (tmp_path / "raw" / "tiny" / "figures").glob("*niah*")}
    assert drawn == {"tiny_niah-1_1.png", "tiny_niah-1_2.png"}


def test_nothing_to_report_gives_one_line_and_code_2(sweep, tmp_path):
    told = subprocess.run(
        [*COMMAND_LINE, "sweep", "report", sweep, "--sweeps", tmp_path, "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 2
    assert len(told.stderr.splitlines()) == 1
    assert "holds no run of sweep tiny: run `echo-lm sweep run" in told.stderr


IN_TASK = {
    "name": "tiny",
    "training": {"steps": 1, "stop_at": 0.999},
    "each_cell": {"tokens": 2_000_000, "batch_tokens": 1000},
    "learning_rates": [0.001, 0.01],
    "seeds": [0],
    "arms": {
        "all": {"preset": "paper-1m-l2", "training": {"learning_rate": 0.005}},
        "few": {"preset": "paper-1m-mamba2", "only": [[2, 8]]},
    },
    "recall": [{"task": "mqar", "pairs": [2, 4], "gaps": [8, 64], "queries": 100}],
}


CURRICULUM = {"curriculum": {"gaps": [8, 32], "lengthen_at": 0.95}}


def test_runs_of_one_cell_each_are_an_arm_together(sweep, tmp_path, report):
    sweep.write_text(yaml.safe_dump(IN_TASK))

    def made(_, run):
        (cell,) = run.cells
        right = 100 - cell.pairs if run.arm == "all" else 10 * (1 + (run.training.learning_rate == 0.01))
        row = cell.described() | {"queries": 100, "correct": right, "open_correct": 0}
        common = dict(arm=run.arm, seed=0, learning_rate=run.training.learning_rate, parameters=7, diverged=False)
        origin = {"hardware": "Some GPU", "torch": "2.0", "date": "2026-01-01", "commit": "abc1234"}
        return common | origin | dict(id=run.id, tokens=1000 * cell.gap, rows=[row], final_loss=0.1, losses=[0.1])

    def without_the_last_cell(results):
        return [result for result in results if result["rows"][0]["length"] != 4 * 2 + 4 + 64]

    def only_what_one_arm_is_asked(results):
        return [result for result in results if result["rows"][0]["pairs"] == 4]

    page, content = report(only_what_one_arm_is_asked, made)
    assert content["arms"]["all"]["cells_by_rate"] == {"0.005": {"trained": 2, "best": 2}}
    assert content["arms"]["all"]["missing"][0] == {"learning_rate": 0.005, "seed": 0, "pairs": 2, "length": 14}
    assert line(page, "\nall:\n", "4") == ["4", "96.00 (0.0M)", "96.00 (0.1M)"]

    page, content = report(without_the_last_cell, made)
    assert "5 of 6 runs" in page
    assert "at most 2,000,000 tokens in steps of 1,000" in page
    assert "it ends once 99.9% of its last answers are right" in page
    assert "shorter gaps" not in page

    assert "all: missing 4 at 64 (rate 0.005)." in page
    assert line(page, "\nall:\n", "2") == ["2", "98.00 (0.0M)", "98.00 (0.1M)"]
    assert line(page, "\nall:\n", "4") == ["4", "96.00 (0.0M)", "-"]
    assert line(page, "\nfew:\n", "2") == ["2", "20.00 (0.0M)", "-"]
    cooling = {"training": IN_TASK["training"] | {"cooldown": 7}}
    sweep.write_text(yaml.safe_dump(IN_TASK | cooling | {"each_cell": IN_TASK["each_cell"] | CURRICULUM}))
    page, _ = report(without_the_last_cell, made)
    assert "and 7 steps at a rate that falls to zero are done" in page
    assert "begins with shorter gaps than its own (8, 32) and goes on to the next once 95% of its last answers" in page
    # What arms have in common is the cell of two pairs and a gap of eight.
    assert line(page, "## Accuracy by task", "all")[4] == "98.0"
    tokens = {(row["arm"], row["pairs"], row["length"]): row["trained_tokens"] for row in content["rows"]}
    assert tokens == {("all", 2, 14): 8000, ("all", 2, 70): 64_000, ("all", 4, 20): 8000, ("few", 2, 14): 8000}


def test_each_cell_is_shown_at_its_best_rate(sweep, report):
    """The second rate is better in the cell of two pairs at the short gap alone, and needed in no cell of four pairs."""
    arms = {"all": {"preset": "paper-1m-l2"}}
    sweep.write_text(yaml.safe_dump(IN_TASK | {"arms": arms, "each_cell": IN_TASK["each_cell"] | {"enough": 0.9}}))

    def made(_, run):
        (cell,) = run.cells
        second = run.training.learning_rate == 0.01
        right = 95 if cell.pairs == 4 else (60 + 10 * second if cell.gap == 8 else 50 - 10 * second)
        row = cell.described() | {"queries": 100, "correct": right, "open_correct": 0}
        common = dict(arm=run.arm, seed=0, learning_rate=run.training.learning_rate, parameters=7, diverged=False)
        origin = {"hardware": "Some GPU", "torch": "2.0", "date": "2026-01-01", "commit": "abc1234"}
        return common | origin | dict(id=run.id, tokens=1_000_000, rows=[row], final_loss=0.1, losses=[0.1])

    def without_what_is_spared(results):
        return [run for run in results if run["learning_rate"] == 0.001 or run["rows"][0]["pairs"] == 2]

    page, content = report(without_what_is_spared, made)
    assert "6 of 6 runs" in page
    assert "Not complete" not in page
    assert "A cell gets another rate only where none before it answered 90%." in page
    assert line(page, "\nall:\n", "2") == ["2", "70.00 (1.0M, 0.01)", "50.00 (1.0M, 0.001)"]
    assert line(page, "\nall:\n", "4") == ["4", "95.00 (1.0M, 0.001)", "95.00 (1.0M, 0.001)"]
    assert line(page, "## Accuracy by task", "all")[2] == "0.001, 0.01"
    assert line(page, "## Learning rates tried", "all") == ["all", "4 (3)", "2 (1)"]
    rates = {(row["pairs"], row["length"]): row["learning_rate"] for row in content["rows"]}
    assert rates == {(2, 14): 0.01, (2, 70): 0.001, (4, 20): 0.001, (4, 76): 0.001}
    assert content["arms"]["all"]["learning_rates"] == [0.001, 0.01]

    # Without the second rate of a cell that the first did not answer the page is not complete.
    page, _ = report(lambda results: [run for run in results if run["learning_rate"] == 0.001], made)
    assert "4 of at most 6 runs" in page
    assert "all: missing 2 at 8, 2 at 64 (rate 0.01)." in page


def test_a_page_elsewhere_links_to_the_results_which_are_kept_once(report, sweep, tmp_path):
    report()
    page = write_report(sweep, tmp_path / "raw", tmp_path / "pages")
    assert not (tmp_path / "pages" / "tiny.json").exists()
    assert "Every cell: [tiny](../raw/tiny)" in page.read_text()


def test_a_page_of_few_lines_leaves_tables_out_and_says_so(report, sweep, tmp_path):
    page, _ = report()
    count = len(page.splitlines())
    short = write_report(sweep, tmp_path / "raw", tmp_path / "pages", count - 3).read_text()
    assert len(short.splitlines()) <= count - 3
    assert "## Accuracy by task" in short
    assert re.search(r"^Tables left out: 1; ", short, re.M)
