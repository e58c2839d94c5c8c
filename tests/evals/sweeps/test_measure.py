"""Runs of recall sweeps, trained and asked."""

import pytest
import torch

from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.evals.measurements.recall import evaluate_recall
from echo_lm.evals.sweeps import measure as recall_measurement
from echo_lm.evals.sweeps import trainer as recall_training
from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.measure import measure_together
from echo_lm.evals.sweeps.runs import runs_of
from tests.helpers.tiny_sweep import IN_TASK, SWEEP, ids, sweep_file


def test_a_table_may_have_more_ids(tmp_path):
    sweep = load_sweep(sweep_file(tmp_path, vocabulary={"num_keys": 100}, seeds=[0], learning_rates=[0.01]))
    (one, _), plain = runs_of(sweep), set(ids(tmp_path))
    assert one.id not in plain
    assert one.config.vocab_size == sweep.ids.size == 188
    tokens = []
    with pytest.MonkeyPatch.context() as patch:
        batches = recall_measurement.recall_batches
        patch.setattr(
            recall_measurement,
            "recall_batches",
            lambda *a, **k: [tokens.append(b.tokens) or b for b in batches(*a, **k)],
        )
        measure_together(sweep, [one])
    assert max(t.max() for t in tokens) > 127
    assert set(ids(tmp_path, vocabulary={"num_keys": 40})) == plain


def test_a_training_ends_when_it_has_learned(tmp_path, monkeypatch):
    """Accuracy of what is trained on ends it; in bf16 its questions are asked in bf16 too."""
    monkeypatch.setattr(recall_training, "LAST_ANSWERS", 0)
    training = SWEEP["training"] | {"stop_at": 0.001, "precision": "bf16"}
    longer = IN_TASK | {"each_cell": {"tokens": 8000, "batch_tokens": 100}}
    sweep = load_sweep(sweep_file(tmp_path, **longer, training=training))
    run = runs_of(sweep)[0]
    evaluated = []
    count = recall_measurement.count_correct
    monkeypatch.setattr(
        recall_measurement,
        "count_correct",
        lambda *a, **k: evaluated.append(torch.is_autocast_enabled("cpu")) or count(*a, **k),
    )
    short = measure_together(sweep, [run])[0]
    step = run.training.batch_sequences * run.cells[0].length
    assert short["tokens"] == 50 * step < run.training.steps * step
    assert len(short["rows"]) == 1
    assert evaluated
    assert all(evaluated)
    never = load_sweep(sweep_file(tmp_path, **longer, training=training | {"stop_at": 1.0}))
    whole = measure_together(never, [runs_of(never)[0]])[0]
    assert whole["tokens"] == run.training.steps * step


def test_a_masked_arm_is_another_run_of_the_same_model(tmp_path):
    """Trained and asked with the mask: a stack without SKA cannot tell the difference, one with it can."""
    ska = {"preset": "paper-1m-l2", "model": {"d_model": 16, "layers": ["mamba2", "ska"], "mamba2": {"headdim": 16}}}
    ska["model"] |= {"ska": {"num_heads": 2, "rank": 4, "mode": "exact", "chunk_size": None}, "allow_edge_ska": True}
    mamba2 = SWEEP["arms"]["one"]
    arms = {
        name: arm | {"prefix_mask": masked}
        for name, arm, masked in (
            ("ska", ska, False),
            ("ska-mask", ska, True),
            ("mamba2", mamba2, False),
            ("mamba2-mask", mamba2, True),
        )
    }
    sweep = load_sweep(sweep_file(tmp_path, arms=arms, seeds=[0], learning_rates=[0.01]))
    runs = runs_of(sweep)
    assert len({run.id for run in runs}) == 4
    losses = {run.arm: result["losses"] for run, result in zip(runs, measure_together(sweep, runs), strict=True)}
    assert losses["mamba2"] == losses["mamba2-mask"]
    assert losses["ska"] != losses["ska-mask"]


def test_each_cell_is_asked_as_if_alone(tmp_path, monkeypatch):
    """The streamed counts are those of `evaluate_recall`, arms skip what is too long, and seeds have questions of their own."""
    arms = SWEEP["arms"] | {"two": SWEEP["arms"]["two"] | {"longest": 32}}
    sweep = load_sweep(sweep_file(tmp_path, arms=arms, own_queries=True, learning_rates=[0.01]))
    models = []
    build = recall_measurement.build_model
    monkeypatch.setattr(recall_measurement, "build_model", lambda *a, **k: models.append(build(*a, **k)) or models[-1])
    results = measure_together(sweep, runs_of(sweep))
    assert [(row["task"], row["length"]) for row in results[0]["rows"]] == [("niah", 32), ("niah", 64), ("mqar", 32)]
    assert [(row["task"], row["length"]) for row in results[1]["rows"]] == [("niah", 32), ("mqar", 32)]
    for run, model, result in zip(runs_of(sweep), models, results, strict=True):
        cells = [cell for cell in sweep.cells if sweep.evaluates(run.arm, cell)]
        for cell, row in zip(cells, result["rows"], strict=True):
            alone = evaluate_recall(model, cell, RecallVocabulary(), batch_tokens=4096, seed=run.seed)
            assert (row["queries"], row["correct"]) == (alone["queries"], alone["correct"])


def test_questions_are_made_one_batch_at_a_time(tmp_path, monkeypatch):
    """A second batch is made after every model answered the first: cells of gigabytes pass through."""
    sweep = load_sweep(sweep_file(tmp_path, learning_rates=[0.01], seeds=[0], recall=SWEEP["recall"][:1]))
    log = []
    batches, count = recall_measurement.recall_batches, recall_measurement.count_correct

    def told(*arguments, **options):
        for batch in batches(*arguments, **options):
            log.append("made")
            yield batch

    monkeypatch.setattr(recall_measurement, "recall_batches", told)
    monkeypatch.setattr(recall_measurement, "count_correct", lambda *a, **k: log.append("asked") or count(*a, **k))
    measure_together(sweep, runs_of(sweep))
    assert log == ["made", "asked", "asked"] * (40 * 32 // 256 + 40 * 64 // 256)


def test_a_model_that_is_not_finite_answers_nothing_and_is_told(tmp_path, monkeypatch):
    sweep = load_sweep(sweep_file(tmp_path, learning_rates=[0.01], seeds=[0]))
    build = recall_measurement.build_model

    def broken(config, **options):
        model = build(config, **options)
        if broken.first:
            torch.nn.init.constant_(model.embedding.weight, float("nan"))
        broken.first = False
        return model

    broken.first = True
    monkeypatch.setattr(recall_measurement, "build_model", broken)
    bad, good = measure_together(sweep, runs_of(sweep))
    assert (bad["diverged"], good["diverged"]) == (True, False)
    assert [(row["queries"], row["correct"]) for row in bad["rows"]] == [(40, 0), (40, 0), (20, 0)]
    assert [row["queries"] for row in good["rows"]] == [40, 40, 20]


def test_one_bad_logit_at_the_end_of_a_cell_spoils_it_alone(tmp_path, monkeypatch):
    sweep = load_sweep(sweep_file(tmp_path, learning_rates=[0.01], seeds=[0]))
    evaluated = []

    def all_right(model, cell, vocabulary, batches, *, device):
        evaluated.append(cell.length)
        if evaluated.count(64) == 2 * 40 * 64 // 256 and cell.length == 64:  # the last batch, the second model
            raise FloatingPointError
        queries = sum(batch.answers.size for batch in batches)
        return {"queries": queries, "correct": queries, "open_correct": queries}

    monkeypatch.setattr(recall_measurement, "count_correct", all_right)
    good, bad = measure_together(sweep, runs_of(sweep))
    assert (good["diverged"], bad["diverged"]) == (False, True)
    assert [row["correct"] for row in good["rows"]] == [40, 40, 20]
    assert [(row["queries"], row["correct"], row["open_correct"]) for row in bad["rows"]] == [
        (40, 40, 40), (40, 0, 0), (20, 20, 20)
    ]  # fmt: skip
