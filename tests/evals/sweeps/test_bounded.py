"""Arms of a sweep that are evaluated under bounded KV caches too: what is refused, what is measured, what is reported."""

import copy
import json

import pytest
import torch

from echo_lm.evals.figures.style import human_bytes
from echo_lm.evals.measurements import recall
from echo_lm.evals.sweeps import measure
from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.measure import measure_together
from echo_lm.evals.sweeps.report import write_report
from echo_lm.evals.sweeps.runs import evaluated_tokens, runs_of
from echo_lm.models import prefill, preset
from echo_lm.models.accounting import state_bytes
from echo_lm.models.common.errors import UserError
from tests.helpers.tiny_sweep import IN_TASK, SMALL, ids, sweep_file
from tests.helpers.tiny_sweep import SWEEP as TINY

HYBRID = SMALL | {"layers": ["mamba2", "attention"], "attention": {"num_heads": 1}}
ONE = {"preset": "paper-1m-hybrid", "model": HYBRID}
OTHER = {"preset": "paper-1m-mamba2", "model": SMALL}
STATE = state_bytes(preset("paper-1m-hybrid", vocab_size=128, **HYBRID), 0)  # before the first token
ENTRY = 2 * 16 * 4 + 1
SMALLEST, LARGEST = STATE + 8 + 4 * ENTRY + 10, 10**6
CACHES = [
    {"policy": "recent", "bytes": [SMALLEST, LARGEST], "options": {"sinks": 1}, "piece": 8},
    {"policy": "cascading", "bytes": [LARGEST], "piece": 8, "longest": 32},
    {"policy": "recent", "bytes": [LARGEST], "positions": "token", "piece": 8, "shortest": 64},
]
SWEEP = TINY | {"learning_rates": [0.01], "seeds": [0, 1], "arms": {"one": ONE | {"caches": CACHES}, "other": OTHER}}


def with_caches(*caches, **arm):
    return {"learning_rates": [0.01], "seeds": [0], "arms": {"one": ONE | {"caches": list(caches)} | arm}}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The sweep, its runs, their models and their results."""
    folder = tmp_path_factory.mktemp("bounded")
    sweep, models = load_sweep(sweep_file(folder, **SWEEP)), []
    with pytest.MonkeyPatch.context() as patch:
        build = measure.build_model
        patch.setattr(measure, "build_model", lambda *a, **k: models.append(build(*a, **k)) or models[-1])
        runs = runs_of(sweep)
        return sweep, runs, models, measure_together(sweep, runs)


def test_every_budget_is_evaluated_on_every_cell_of_its_lengths(measured):
    sweep, runs, _, results = measured
    (one, other, *_) = results
    assert "bounded" not in other
    found = [(r["length"], r["cache"]["policy"], r["cache"]["bytes"], r["cache"]["positions"]) for r in one["bounded"]]
    recent = [("recent", SMALLEST, "cache"), ("recent", LARGEST, "cache")]
    for length in (32, 64):
        more = ("cascading", LARGEST, "cache") if length == 32 else ("recent", LARGEST, "token")
        cells = sum(cell.length == length for cell in sweep.cells)
        assert sorted(f[1:] for f in found if f[0] == length) == sorted([*recent, more] * cells)
    assert all(row["recurrent"] for row in one["bounded"])
    assert evaluated_tokens(sweep, runs[0]) == 4 * evaluated_tokens(sweep, runs[1])


def test_a_large_budget_answers_as_the_whole_cache_and_a_small_one_does_not(measured):
    sweep, runs, models, results = measured
    for row in results[0]["bounded"]:
        cell = next(cell for cell in sweep.cells if (cell.label, cell.length) == (row["label"], row["length"]))
        whole = recall.evaluate_recall(models[0], cell, sweep.ids, batch_tokens=4096)
        if row["cache"]["bytes"] == LARGEST:
            assert row["correct"] == whole["correct"]
        assert row["queries"] == whole["queries"]
    small, large, *_ = runs[0].budgets_at(64)
    (batch,) = measure.recall_batches(sweep.cells[1], sweep.ids, batch_tokens=10**6, seed=0)
    tokens = torch.from_numpy(batch.tokens)
    logits, cache = prefill(small.bound(models[0]), tokens)
    assert SMALLEST - ENTRY < cache.nbytes() / len(tokens) <= SMALLEST
    assert not torch.allclose(logits, prefill(large.bound(models[0]), tokens)[0])


def test_the_question_is_read_after_the_cache_was_cut(measured, monkeypatch):
    """What precedes the first question is read in pieces; the question itself is a step."""
    sweep, runs, models, _ = measured
    read = []
    monkeypatch.setattr(recall, "prefill", lambda model, tokens: read.append(tokens.shape[1]) or prefill(model, tokens))
    cell = sweep.cells[1]
    (batch,) = measure.recall_batches(cell, sweep.ids, batch_tokens=10**6, seed=0)
    with torch.inference_mode():
        recall.answer_logits(runs[0].budgets_at(64)[0].bound(models[0]), batch, recurrent=True)
    assert read == [batch.query_positions.min()]


def test_caches_are_part_of_what_a_run_is(tmp_path):
    plain = ids(tmp_path, **with_caches())
    assert plain == ids(tmp_path, learning_rates=[0.01], seeds=[0], arms={"one": ONE})
    assert plain != ids(tmp_path, **with_caches(CACHES[0])) != ids(tmp_path, **with_caches(CACHES[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (with_caches({"policy": "lru", "bytes": [9]}), "policy is 'lru': choose one of recent, tova,"),
        (
            with_caches({"policy": "tova", "bytes": [9], "options": {"sinks": 1}}),
            "tova has no option 'sinks': it has w",
        ),
        (with_caches({"policy": "recent", "bytes": [4]}), f"arm one: cache recent: 4 bytes .* alone take {STATE:,}"),
        (with_caches({"policy": "snapkv", "bytes": [SMALLEST]}), "cache snapkv: a budget of .* keeps the latest 32"),
        (with_caches(CACHES[0], CACHES[0]), f"`caches` has recent with {SMALLEST:,} bytes twice"),
        (with_caches(CACHES[0], prefix_mask=True), "leave out `prefix_mask` and `each_cell`"),
        (IN_TASK | {"arms": {"one": ONE | {"caches": CACHES}}}, "leave out `prefix_mask` and `each_cell`"),
        (with_caches(CACHES[0]) | {"arms": {"one": OTHER | {"caches": CACHES}}}, "has no attention layer"),
    ],
)
def test_refusals_are_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        runs_of(load_sweep(sweep_file(tmp_path, **changes)))
    assert "\n" not in str(caught.value)


def test_the_page_has_the_best_policy_at_each_budget_and_the_mean_of_all(measured, tmp_path):
    runs, results = measured[1], copy.deepcopy(measured[3])
    path = sweep_file(tmp_path, **SWEEP)
    origin = {"hardware": "a GPU", "torch": "2", "date": "2026-01-01", "commit": "abc"}
    right = {"recent": 6, "cascading": 9}
    for result in results:
        for row in result.get("bounded", []):
            row["correct"] = right[row["cache"]["policy"]] + (row["cache"]["bytes"] == LARGEST)
    stored = [result | origin for result in results]
    (tmp_path / "tiny.json").write_text(json.dumps({"table": "tiny", "runs": stored}))
    page = write_report(path, tmp_path, tmp_path / "tiny").read_text()
    section = page[page.index("## State or cache") :]
    lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in section.splitlines() if row[:1] == "|"]
    at_32 = lines[:6]
    assert at_32[0] == ["arm", "state", "niah-1", "mqar-2"]
    assert [line[:2] for line in at_32[2:]] == [
        ["one", human_bytes(state_bytes(runs[0].config, 32))],
        ["other", human_bytes(state_bytes(runs[1].config, 32))],
        ["one, bounded", human_bytes(SMALLEST)],
        ["one, bounded", "977 KiB"],
    ]
    assert at_32[4][2].startswith("15.0 (")
    assert at_32[4][2].endswith(") recent")  # 12 of 80, both seeds
    assert at_32[5][2].startswith("25.0 (")
    assert at_32[5][2].endswith(") cascading")
    content = json.loads((tmp_path / "tiny" / "tiny.json").read_text())
    assert len(content["bounded"]) == sum(len(result.get("bounded", [])) for result in results)
    assert content["bounded"][0]["cache"]["policy"] == "recent"
    figures = {file.name for file in (tmp_path / "tiny" / "figures").iterdir()}
    assert {"tiny_policies-one.png", "tiny_state-32.png", "tiny_state-64.png"} < figures


def test_the_sweep_that_comes_with_the_project_keeps_its_budgets():
    """Quarter, one, four and sixteen times the state of Echo."""
    sweep = load_sweep("state-or-cache")
    echo, attention, hybrid = runs_of(sweep)[:3]
    state = state_bytes(echo.config, 10**6)
    assert {budget.bytes for budget in attention.budgets_at(1024)} == {state // 4, state, 4 * state, 16 * state}
    assert {budget.bytes for budget in hybrid.budgets_at(1024)} == {state, 4 * state, 16 * state}
