"""Comparing runs: the numbers behind the charts and tables equal those of the files."""

import csv
import io
import json
import math
from urllib.parse import quote

import numpy as np
import pytest
import yaml

from echo_lm.models import build_model, save_pretrained
from echo_lm.models.accounting import training_flops
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.note import note
from echo_lm.orchestration.dashboard.curves.history import History
from echo_lm.orchestration.dashboard.curves.overlay import mean_and_band, overlay, run_curve
from echo_lm.orchestration.dashboard.pairs import accuracy_differences, text_differences
from echo_lm.orchestration.dashboard.table import RunTable
from echo_lm.orchestration.dashboard.values import RunValues, differences, group_labels
from echo_lm.pipeline.config import load_config
from tests.helpers.run_folders import STEPS, step_event, write_branch, write_compared, write_finished
from tests.orchestration.dashboard.test_serve import get

FAST = [f"rate-0.003-seed-{seed}" for seed in range(3)]
SLOW = [f"rate-0.001-seed-{seed}" for seed in range(2)]
RECALL = "eval/recall-quick/recall/sysprompt-4/length-64"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    write_compared(root / "runs")
    write_branch(root / "runs", root / "runs" / FAST[0], 20)
    return root / "runs"


@pytest.fixture(scope="module")
def address(runs, serve):
    return serve(runs, runs.parent / "studies")


def read(folder):
    history = History(folder)
    history.read()
    return history


def test_a_group_of_seeds_is_one_curve_with_its_band(runs):
    values = RunValues(RunTable(runs))
    labels = group_labels({name: values.of(name) for name in (*FAST, *SLOW)}, "seeds")
    assert set(labels.values()) == {f"{FAST[0]} and 2 more", f"{SLOW[0]} and 1 more"}
    folders = {name: runs / name for name in (*FAST, *SLOW)}
    fast, slow = overlay(folders, "loss", "tokens", labels, read)
    assert (fast["runs"], slow["runs"]) == (FAST, SLOW)
    assert fast["x"] == [512 * step for step in range(1, STEPS + 1)]
    losses = np.array(
        [[step_event(step, 0, 0.1 * (seed - 1))["loss"] for seed in range(3)] for step in range(1, STEPS + 1)]
    )
    assert fast["y"] == pytest.approx(losses.mean(axis=1))
    assert np.subtract(fast["high"], fast["low"]) == pytest.approx(2 * losses.std(axis=1, ddof=1))
    assert set(group_labels({name: values.of(name) for name in FAST}, "train.learning_rate").values()) == {
        "learning_rate 0.003"
    }


def test_curves_of_other_steps_are_averaged_where_all_of_them_are():
    first = {"x": [1.0, 2.0, 3.0, 4.0], "y": [1.0, 2.0, 3.0, 4.0]}
    second = {"x": [0.0, 2.5, 3.5], "y": [0.0, 5.0, 7.0]}
    assert mean_and_band([first, second]) == {
        "x": [1.0, 2.0, 3.0],
        "y": [1.5, 3.0, 4.5],
        "low": pytest.approx([1.5 - 0.5 * math.sqrt(2), 3 - math.sqrt(2), 4.5 - 1.5 * math.sqrt(2)]),
        "high": pytest.approx([1.5 + 0.5 * math.sqrt(2), 3 + math.sqrt(2), 4.5 + 1.5 * math.sqrt(2)]),
    }


def test_a_branch_has_its_parent_before_it(runs):
    branch = run_curve(runs / f"{FAST[0]}-branch", "loss", "step", read)
    assert (branch["x"], branch["own"]) == (list(range(1, STEPS + 1)), 20)
    expected = [step_event(step, 0, -0.1 if step <= 20 else -0.25)["loss"] for step in range(1, STEPS + 1)]
    assert branch["y"] == pytest.approx(expected)
    by_time = run_curve(runs / f"{FAST[0]}-branch", "loss", "time", read)
    assert by_time["own"] == 0, "its own clock"


def test_the_cost_of_a_curve_is_that_of_its_model(tmp_path):
    folder = write_finished(tmp_path, "with-model")
    assert run_curve(folder, "loss", "flops", read) is None, "no model's config is there"
    config = load_config("smoke", []).model.resolve(vocab_size=64)
    save_pretrained(build_model(config, seed=0), folder / "checkpoints/step_00000040/model")
    curve = run_curve(folder, "loss", "flops", read)
    assert curve["x"][-1] == pytest.approx(training_flops(config, 64) * STEPS * 512)


def test_evaluations_are_curves_over_checkpoints(runs):
    curve = run_curve(runs / FAST[0], "eval/language/language/bits_per_byte", "step", read)
    assert (curve["x"], curve["y"]) == ([10, 20, 30, 40], [2.0 + 8 / step for step in (10, 20, 30, 40)])
    with pytest.raises(UserError, match="metric is one of loss"):
        overlay({}, "secret", "step", {}, read)
    with pytest.raises(UserError, match="x is one of step"):
        overlay({}, "loss", "y", {}, read)


def test_what_differs_is_the_seed_and_the_rate(runs):
    values = RunValues(RunTable(runs))
    rows = differences({name: values.of(name) for name in (FAST[1], SLOW[0])})
    assert rows == [("seed", [1, 0]), ("train.learning_rate", [0.003, 0.001])]
    assert {"seed", "train.learning_rate", RECALL} <= set(values.columns())
    assert "train.steps" not in values.columns()


def test_differences_of_accuracies_have_newcombes_interval(tmp_path):
    """56 of 70 against 48 of 80: 0.0524 to 0.3339 (Newcombe 1998, table II, method 10)."""
    first, second = write_finished(tmp_path, "a"), write_finished(tmp_path, "b")
    for folder, correct, queries in ((first, 48, 80), (second, 56, 70)):
        path = folder / "evals/step_00000040/recall-quick.json"
        result = json.loads(path.read_text())
        result["rows"] = [result["rows"][0] | {"accuracy": correct / queries, "queries": queries}]
        path.write_text(json.dumps(result))
    row = next(row for row in accuracy_differences(first, second) if row["label"] == "sysprompt-4")
    assert (row["low"], row["high"]) == (pytest.approx(0.0524, abs=5e-4), pytest.approx(0.3339, abs=5e-4))
    assert not row["paired"]


def test_runs_that_answered_the_same_questions_are_paired(runs, tmp_path):
    first, second = runs / SLOW[0], runs / FAST[0]
    rows = accuracy_differences(first, second)
    assert len(rows) == 6
    for row in rows:
        assert row["paired"]
        assert row["low"] <= row["difference"] <= row["high"]
    own = [(row["low"], row["high"]) for row in rows]
    path = first / "evals/step_00000040/recall-quick.json"
    stored = path.read_text()
    path.write_text(json.dumps(json.loads(stored) | {"dataset_sha256": "another"}))
    apart = accuracy_differences(first, second)
    path.write_text(stored)
    assert not any(row["paired"] for row in apart)
    wider = [row["high"] - row["low"] > high - low for row, (low, high) in zip(apart, own, strict=True)]
    assert all(wider)
    (text,) = text_differences(first, write_finished(tmp_path, "same"))
    assert (text["label"], text["difference"], text["low"], text["high"]) == ("all sources", 0, 0, 0)


def test_tables_and_curves_leave_as_json_and_csv(address, runs):
    rows = json.loads(get(address, f"/api/runs?column=train.learning_rate&column={quote(RECALL)}")[1])
    assert {row["name"]: row["train.learning_rate"] for row in rows if row["name"] in SLOW} == dict.fromkeys(
        SLOW, 0.001
    )
    text = get(address, f"/api/runs.csv?column={quote(RECALL)}")[1].decode()
    table = {row["name"]: row for row in csv.DictReader(io.StringIO(text))}
    result = json.loads((runs / FAST[2] / "evals/step_00000040/recall-quick.json").read_text())
    assert float(table[FAST[2]][RECALL]) == result["metrics"][RECALL.removeprefix("eval/recall-quick/")]
    query = "&".join(f"run={name}" for name in FAST)
    lines = list(csv.reader(io.StringIO(get(address, f"/api/curves.csv?{query}&group=seeds")[1].decode())))
    assert lines[0] == ["metric", "run", "step", "value", "low", "high"]
    assert len(lines) == 1 + STEPS
    page = get(address, f"/compare?run={SLOW[0]}")[1].decode()
    assert '<option value="loss_by_source/web">' in page
    (curve,) = json.loads(get(address, f"/api/curves?run={SLOW[0]}&metric=loss_by_source/web")[1])["loss_by_source/web"]
    assert curve["y"] == pytest.approx([step_event(step, 0, 0.4)["loss_by_source"]["web"] for step in curve["x"]])
    assert get(address, "/api/curves?run=none")[0] == get(address, "/compare?run=..")[0] == 404
    assert get(address, f"/api/curves?run={FAST[0]}&x=y")[0] == 422


def test_a_text_that_a_spreadsheet_would_run_is_text(serve, tmp_path):
    write_finished(tmp_path / "runs", "plain").rename(tmp_path / "runs/=cmd()")
    text = get(serve(tmp_path / "runs", tmp_path / "none"), "/api/runs.csv")[1].decode()
    assert text.splitlines()[1].startswith("'=cmd(),finished,")


def test_notes_are_a_file_of_the_run(tmp_path):
    folder = write_finished(tmp_path)
    note(folder, "best so far", tag=["baseline", "paper"], archive=True)
    note(folder, untag=["paper"])
    (row,) = RunTable(tmp_path).rows()[1]
    assert (row.tags, row.note, row.archived) == (("baseline",), "best so far", True)
    assert yaml.safe_load((folder / "notes.yaml").read_text())["tags"] == ["baseline"]
    (folder / "notes.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is no YAML with keys"):
        note(folder, "lost?")
    assert RunTable(tmp_path).rows()[1][0].state == "finished"
