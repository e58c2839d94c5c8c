"""Tables of recall: which runs there are, what they are asked, how processes share them."""

import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.evals import recall_table, recall_training
from echo_lm.evals.recall import evaluate_recall
from echo_lm.evals.recall_table import load_table, measure_together, runs_of
from echo_lm.models.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = {"d_model": 16, "layers": ["mamba2"], "feedforward": {"kind": "swiglu", "width": 8}, "mamba2": {"headdim": 16}}
TABLE = {
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
TABLE["arms"]["two"]["training"] = {"weight_decay": 0.1}


def table_file(folder: Path, **changes) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TABLE | changes))
    return path


def ids(folder: Path, **changes) -> list[str]:
    return [run.id for run in runs_of(load_table(table_file(folder, **changes)))]


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "recall_tables.py", *map(str, arguments)], capture_output=True, text=True
    )


def test_what_is_compared_with_changes_no_run_and_what_is_asked_changes_all(tmp_path):
    plain = ids(tmp_path)
    published = {"source": "a paper", "means": {"SSM": {"niah": 52.0}}}
    cell = {"task": "niah", "pairs": 1, "length": 64, "percent": {"SSM": 2.0}}
    assert len(set(plain)) == 8
    assert ids(tmp_path, published=published | {"cells": [cell]}, mean_of=["niah"], description="new") == plain
    assert not set(ids(tmp_path, recall=TABLE["recall"][:1])) & set(plain)
    assert not set(ids(tmp_path, own_questions=True)) & set(plain)
    arms = TABLE["arms"] | {"two": TABLE["arms"]["two"] | {"longest": 32}}
    changed = ids(tmp_path, arms=arms)
    assert [a == b for a, b in zip(changed, plain, strict=True)] == [True, False] * 4


def test_the_ids_of_the_transfer_table_stand():
    """Results are found by these. A change of a table, of a preset or of the hash repeats all of its runs."""
    assert runs_of(load_table(ROOT / "benchmarks" / "tables" / "transfer.yaml"))[0].id == "6602d7980a663eb4"


def test_the_in_task_table_has_its_cells():
    runs = runs_of(load_table(ROOT / "benchmarks" / "tables" / "mqar50m.yaml"))
    assert Counter(run.arm for run in runs) == {"echo": 28, "mamba2": 18, "hybrid": 18}
    runs = runs_of(load_table(ROOT / "benchmarks" / "tables" / "mqar50m-64.yaml"))
    assert Counter(run.arm for run in runs) == {"echo": 3, "hybrid": 6}


def test_a_table_may_have_more_ids(tmp_path):
    table = load_table(table_file(tmp_path, vocabulary={"num_keys": 100}, seeds=[0], learning_rates=[0.01]))
    (one, _), plain = runs_of(table), set(ids(tmp_path))
    assert one.id not in plain
    assert one.config.vocab_size == table.ids.size == 188
    tokens = []
    with pytest.MonkeyPatch.context() as patch:
        batches = recall_table.recall_batches
        patch.setattr(
            recall_table, "recall_batches", lambda *a, **k: [tokens.append(b.tokens) or b for b in batches(*a, **k)]
        )
        measure_together(table, [one])
    assert max(t.max() for t in tokens) > 127
    assert set(ids(tmp_path, vocabulary={"num_keys": 40})) == plain


@pytest.mark.parametrize(
    "name", ["transfer", "length", "length-rates", "length-ideas", "length-noise", "ablations", "token-gate"]
)
def test_the_tables_that_come_with_the_project_are_whole(name):
    table = load_table(ROOT / "benchmarks" / "tables" / f"{name}.yaml")
    runs = runs_of(table)
    assert len({run.id for run in runs}) == len(table.arms) * len(table.learning_rates) * len(table.seeds)
    assert all(cell.sequences > 0 for cell in table.cells)


IN_TASK = {
    "each_cell": {"tokens": 3000, "batch_tokens": 100},
    "learning_rates": [0.01],
    "seeds": [0],
    "arms": {"one": TABLE["arms"]["one"], "two": TABLE["arms"]["two"] | {"only": [[2, 4]], "tokens": 6000}},
    "recall": [{"task": "mqar", "pairs": [1, 2], "gaps": [4, 16], "queries": 20}],
}


def test_a_model_for_each_cell_learns_that_cell_alone(tmp_path):
    runs = runs_of(load_table(table_file(tmp_path, **IN_TASK)))
    assert len({run.id for run in runs}) == len(runs) == 5
    for run in runs:
        (cell,) = run.cells
        training = run.training
        assert (training.tasks, training.pairs, training.lengths) == (("mqar",), (cell.pairs,), (cell.length,))
        step = training.batch_sequences * cell.length
        assert step <= 100 < step + cell.length
        budget = 6000 if run.arm == "two" else 3000
        assert training.steps * step <= budget < (training.steps + 1) * step
    (two,) = (run for run in runs if run.arm == "two")
    assert (two.cells[0].pairs, two.cells[0].gap) == (2, 4)
    # The budget is part of what a run is, what others are asked is not.
    fewer = IN_TASK | {"recall": [IN_TASK["recall"][0] | {"gaps": [4]}]}
    kept = {run.id for run in runs_of(load_table(table_file(tmp_path, **fewer)))}
    assert kept < {run.id for run in runs}
    assert len(kept) == 3
    dearer = IN_TASK | {"each_cell": {"tokens": 3100, "batch_tokens": 100}}
    assert sum(run.id in {run.id for run in runs} for run in runs_of(load_table(table_file(tmp_path, **dearer)))) == 1


def test_a_curriculum_of_cells_begins_with_shorter_gaps(tmp_path):
    each = IN_TASK["each_cell"] | {"curriculum": {"gaps": [4, 4, 8], "lengthen_at": 0.9}}
    runs = runs_of(load_table(table_file(tmp_path, **IN_TASK | {"each_cell": each})))
    plain = {run.id for run in runs_of(load_table(table_file(tmp_path, **IN_TASK)))}
    assert not plain & {run.id for run in runs}
    for run in runs:
        (cell,) = run.cells
        shortest = cell.length - cell.gap
        gaps = (4, 4) if cell.gap == 4 else (4, 4, 8, 16)
        assert run.training.lengths == tuple(shortest + gap for gap in gaps)
        assert (run.training.tokens, run.training.lengthen_at) == (6000 if run.arm == "two" else 3000, 0.9)
        rows = [run.training.batch_at(length) for length in run.training.lengths]
        assert all(n * length <= 100 for n, length in zip(rows, run.training.lengths, strict=True))
    trained = measure_together(load_table(table_file(tmp_path, **IN_TASK | {"each_cell": each})), [runs[1]])[0]
    assert 2900 < trained["tokens"] <= 3000


def test_a_training_ends_when_it_has_learned(tmp_path, monkeypatch):
    """Accuracy of what is trained on ends it; in bf16 its questions are asked in bf16 too."""
    monkeypatch.setattr(recall_training, "LAST_ANSWERS", 0)
    training = TABLE["training"] | {"stop_at": 0.001, "precision": "bf16"}
    longer = IN_TASK | {"each_cell": {"tokens": 8000, "batch_tokens": 100}}
    table = load_table(table_file(tmp_path, **longer, training=training))
    run = runs_of(table)[0]
    asked = []
    count = recall_table.count_answers
    monkeypatch.setattr(
        recall_table,
        "count_answers",
        lambda *a, **k: asked.append(torch.is_autocast_enabled("cpu")) or count(*a, **k),
    )
    short = measure_together(table, [run])[0]
    step = run.training.batch_sequences * run.cells[0].length
    assert short["tokens"] == 50 * step < run.training.steps * step
    assert len(short["rows"]) == 1
    assert asked
    assert all(asked)
    never = load_table(table_file(tmp_path, **longer, training=training | {"stop_at": 1.0}))
    whole = measure_together(never, [runs_of(never)[0]])[0]
    assert whole["tokens"] == run.training.steps * step


def test_a_masked_arm_is_another_run_of_the_same_model(tmp_path):
    """Trained and asked with the mask: a stack without SKA cannot tell the difference, one with it can."""
    ska = {"preset": "paper-1m-l2", "model": {"d_model": 16, "layers": ["mamba2", "ska"], "mamba2": {"headdim": 16}}}
    ska["model"] |= {"ska": {"num_heads": 2, "rank": 4, "mode": "exact", "chunk_size": None}, "allow_edge_ska": True}
    mamba2 = TABLE["arms"]["one"]
    arms = {
        name: arm | {"prefix_mask": masked}
        for name, arm, masked in (
            ("ska", ska, False),
            ("ska-mask", ska, True),
            ("mamba2", mamba2, False),
            ("mamba2-mask", mamba2, True),
        )
    }
    table = load_table(table_file(tmp_path, arms=arms, seeds=[0], learning_rates=[0.01]))
    runs = runs_of(table)
    assert len({run.id for run in runs}) == 4
    losses = {run.arm: result["losses"] for run, result in zip(runs, measure_together(table, runs), strict=True)}
    assert losses["mamba2"] == losses["mamba2-mask"]
    assert losses["ska"] != losses["ska-mask"]


def test_a_rate_of_its_own_makes_one_run(tmp_path):
    arms = TABLE["arms"] | {"two": TABLE["arms"]["two"] | {"training": {"learning_rate": 0.002}}}
    runs = runs_of(load_table(table_file(tmp_path, arms=arms)))
    assert [run.training.learning_rate for run in runs if run.arm == "two"] == [0.002, 0.002]
    assert [run.seed for run in runs if run.arm == "two"] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"published": {"source": "", "means": {"SSM": {"naih": 1.0}}}}, "'naih' is not asked in it"),
        ({"published": {"source": "", "means": {"SSM": {"niah": 101.0}}}}, "101"),
        ({"mean_of": ["economy"]}, "'economy' is not asked in it"),
        ({"arms": {"one": TABLE["arms"]["one"] | {"longest": 16}}}, "no cell of niah is asked of every arm"),
        ({"publishd": {}}, "published"),
        ({"arms": {"one": TABLE["arms"]["one"] | {"only": [[3, 5]]}}}, "arm one: no cell has 3 pairs and a gap of 5"),
        ({"each_cell": {"tokens": 10}}, "batch_tokens"),
        ({"vocabulary": {"num_keys": 1}}, r"mqar-2 needs 2 keys, there are 1 \(`vocabulary: num_keys`\)"),
        ({"vocabulary": {"keys": 99}}, "keys"),
        (
            {
                "arms": {"one": TABLE["arms"]["one"] | {"prefix_mask": True}},
                "recall": [TABLE["recall"][0] | {"recurrent": True}],
            },
            "arm one: `prefix_mask` is for parallel passes",
        ),
        ({"arms": {"one": TABLE["arms"]["one"] | {"tokens": 100}}}, "arm one: `tokens` .* needs `each_cell`"),
    ],
)
def test_a_wrong_table_gives_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load_table(table_file(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"write_cost": 0.1}, "arm one: write_cost needs SKA layers with a write gate, its model has none"),
        ({"steps": 0}, "arm one: .*steps"),
        ({"write_cost": 0.1, "stop_at": 0.9}, "arm one: .*write_cost grows with the steps, which stop_at cuts short"),
        ({"write_cost": 0.1, "tokens": 900}, "arm one: .*write_cost grows with the steps, which tokens cuts short"),
        ({"cooldown": 9}, "arm one: .*cooldown follows where the training stops: it needs `stop_at`"),
        ({"lengths": [32, 64], "tokens": 100}, "arm one: .*tokens is 100: a step takes up to 256"),
        (
            {"lengths": [32, 64], "tokens": 1000, "lengthen_at": 0.9},
            "arm one: .*1,000 tokens may be 7 steps: steps is 3",
        ),
        ({"lengthen_at": 0.9}, "arm one: .*lengthen_at shares out `tokens`: give it a number of them"),
    ],
)
def test_a_wrong_training_of_an_arm_gives_one_line(tmp_path, training, message):
    table = load_table(table_file(tmp_path, arms={"one": TABLE["arms"]["one"] | {"training": training}}))
    with pytest.raises(UserError, match=message) as error:
        runs_of(table)
    assert "\n" not in str(error.value)


def test_each_cell_is_asked_as_if_alone(tmp_path, monkeypatch):
    """The streamed counts are those of `evaluate_recall`, arms skip what is too long, and seeds have questions of their own."""
    arms = TABLE["arms"] | {"two": TABLE["arms"]["two"] | {"longest": 32}}
    table = load_table(table_file(tmp_path, arms=arms, own_questions=True, learning_rates=[0.01]))
    models = []
    build = recall_table.build_model
    monkeypatch.setattr(recall_table, "build_model", lambda *a, **k: models.append(build(*a, **k)) or models[-1])
    results = measure_together(table, runs_of(table))
    assert [(row["task"], row["length"]) for row in results[0]["rows"]] == [("niah", 32), ("niah", 64), ("mqar", 32)]
    assert [(row["task"], row["length"]) for row in results[1]["rows"]] == [("niah", 32), ("mqar", 32)]
    for run, model, result in zip(runs_of(table), models, results, strict=True):
        cells = [cell for cell in table.cells if table.asks(run.arm, cell)]
        for cell, row in zip(cells, result["rows"], strict=True):
            alone = evaluate_recall(model, cell, RecallVocabulary(), batch_tokens=4096, seed=run.seed)
            assert (row["queries"], row["correct"]) == (alone["queries"], alone["correct"])


def test_questions_are_made_one_batch_at_a_time(tmp_path, monkeypatch):
    """A second batch is made after every model answered the first: cells of gigabytes pass through."""
    table = load_table(table_file(tmp_path, learning_rates=[0.01], seeds=[0], recall=TABLE["recall"][:1]))
    log = []
    batches, count = recall_table.recall_batches, recall_table.count_answers

    def told(*arguments, **options):
        for batch in batches(*arguments, **options):
            log.append("made")
            yield batch

    monkeypatch.setattr(recall_table, "recall_batches", told)
    monkeypatch.setattr(recall_table, "count_answers", lambda *a, **k: log.append("asked") or count(*a, **k))
    measure_together(table, runs_of(table))
    assert log == ["made", "asked", "asked"] * (40 * 32 // 256 + 40 * 64 // 256)


def test_a_model_that_is_not_finite_answers_nothing_and_is_told(tmp_path, monkeypatch):
    table = load_table(table_file(tmp_path, learning_rates=[0.01], seeds=[0]))
    build = recall_table.build_model

    def broken(config, **options):
        model = build(config, **options)
        if broken.first:
            torch.nn.init.constant_(model.embedding.weight, float("nan"))
        broken.first = False
        return model

    broken.first = True
    monkeypatch.setattr(recall_table, "build_model", broken)
    bad, good = measure_together(table, runs_of(table))
    assert (bad["diverged"], good["diverged"]) == (True, False)
    assert [(row["queries"], row["correct"]) for row in bad["rows"]] == [(40, 0), (40, 0), (20, 0)]
    assert [row["queries"] for row in good["rows"]] == [40, 40, 20]


def test_one_bad_logit_at_the_end_of_a_cell_spoils_it_alone(tmp_path, monkeypatch):
    table = load_table(table_file(tmp_path, learning_rates=[0.01], seeds=[0]))
    asked = []

    def all_right(model, cell, vocabulary, batches, *, device):
        asked.append(cell.length)
        if asked.count(64) == 2 * 40 * 64 // 256 and cell.length == 64:  # the last batch, the second model
            raise FloatingPointError
        queries = sum(batch.answers.size for batch in batches)
        return {"queries": queries, "correct": queries, "open_correct": queries}

    monkeypatch.setattr(recall_table, "count_answers", all_right)
    good, bad = measure_together(table, runs_of(table))
    assert (good["diverged"], bad["diverged"]) == (False, True)
    assert [row["correct"] for row in good["rows"]] == [40, 40, 20]
    assert [(row["queries"], row["correct"], row["open_correct"]) for row in bad["rows"]] == [
        (40, 40, 40), (40, 0, 0), (20, 20, 20)
    ]  # fmt: skip


def test_parts_share_a_table_and_nothing_runs_twice(tmp_path):
    path = table_file(tmp_path, seeds=[0])
    wanted = [run.id for run in runs_of(load_table(path))]
    out = tmp_path / "out"

    def found(name: str) -> list[str]:
        return [run["id"] for run in json.loads((out / name).read_text())["runs"]]

    first = command(path, "--out", out, "--device", "cpu", "--part", "1/3")
    assert first.returncode == 0, first.stderr
    assert found("tiny.1-of-3.json") == wanted[1::3]
    rest = command(path, "--out", out, "--device", "cpu")
    assert rest.returncode == 0, rest.stderr
    assert found("tiny.json") == [run for run in wanted if run not in wanted[1::3]]
    # Another way to share finds all of it done, and another table's name is not taken for a part.
    (out / "tiny-more.0-of-2.json").write_text("not read")
    again = command(path, "--out", out, "--device", "cpu", "--part", "0/2")
    assert "0 runs to do" in again.stdout
    assert not (out / "tiny.0-of-2.json").exists()


def test_a_start_always_does_something_and_stops_in_time(tmp_path):
    path = table_file(tmp_path, seeds=[0])
    told = command(path, "--out", tmp_path / "out", "--device", "cpu", "--seconds", "0")
    assert "stopped: 3 runs are left" in told.stdout
    assert len(json.loads((tmp_path / "out" / "tiny.json").read_text())["runs"]) == 1


def test_no_group_begins_that_would_end_too_late(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    recall_tables = importlib.import_module("recall_tables")
    clock = SimpleNamespace(now=0.0)

    def ten_seconds(table, group, **options):
        clock.now += 10
        return [{"id": run.id, "rows": [], "final_loss": 0.0, "tokens": 0} for run in group]

    monkeypatch.setattr(recall_tables, "measure_together", ten_seconds)
    monkeypatch.setattr(
        recall_tables, "time", SimpleNamespace(monotonic=lambda: clock.now, strftime=lambda form: "2026-01-01")
    )
    path = table_file(tmp_path, seeds=[0])
    options = ["recall_tables.py", str(path), "--out", str(tmp_path), "--device", "cpu", "--seconds", "25"]
    monkeypatch.setattr(sys, "argv", options)
    recall_tables.main()
    assert len(json.loads((tmp_path / "tiny.json").read_text())["runs"]) == 2  # a third would end after 30 seconds


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
    told = command(table_file(tmp_path), "--out", tmp_path, "--device", "cpu", *arguments)
    assert told.returncode == 2
    assert message in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_a_damaged_result_file_is_not_written_over(tmp_path):
    (tmp_path / "tiny.0-of-2.json").write_text('{"runs": [')
    told = command(table_file(tmp_path), "--out", tmp_path, "--device", "cpu")
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)
    assert "tiny.0-of-2.json is not valid JSON" in told.stderr
