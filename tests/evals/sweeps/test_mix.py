"""Trainings on a named mix of tasks."""

import hashlib
import json

import numpy as np
import pytest

from echo_lm.data_prep.recall import MIXES, RecallVocabulary, seeded_generator
from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.runs import runs_of
from echo_lm.evals.sweeps.trainer import recall_bank
from echo_lm.evals.sweeps.training_config import RecallTraining


def test_a_mix_is_what_its_name_says_for_ever():
    """Trainings are found by the name: a better mix gets a name of its own."""
    digests = {name: hashlib.sha256(json.dumps(mix).encode()).hexdigest()[:16] for name, mix in MIXES.items()}
    assert digests == {
        "broad": "f6c3295894756df1",
        "broad-needles": "6722a949f7f1c48b",
        "broad-ruler": "ada81aa6ef7d311b",
        "broad-copying": "72acaabec5f79dc7",
    }


def test_a_batch_holds_every_part_of_the_mix_in_equal_shares():
    training = RecallTraining(mix="broad", lengths=(64,), pairs=(3,), batch_sequences=24)
    vocabulary = RecallVocabulary()
    tokens = recall_bank(training, 64, vocabulary, seeded_generator("test"), 5).tokens.numpy()
    assert (tokens[:, :9, 0] == vocabulary.system).all()
    assert not (tokens[:, 9:] == vocabulary.system).any()
    calls = (tokens == vocabulary.call).sum(2)
    assert (calls[:, 9:15] == 5).all(), "three calls and two overwrites"
    keys = np.isin(tokens, vocabulary.keys).sum(2)
    assert (keys[:, :3] == 6).all()
    assert (keys[:, 3:6] > 8).all(), "decoys and mentions"
    assert (keys[:, 15:18] == 6).all()
    assert (keys[:, 18:21] == 12).all()
    assert (keys[:, 21:] > 12).all()


def test_a_mix_brings_its_options():
    with pytest.raises(ValueError, match="mix is 'wide': choose one of broad"):
        RecallTraining(mix="wide")
    with pytest.raises(ValueError, match="leave out `tasks` and `options`"):
        RecallTraining(mix="broad", tasks=("niah",))
    values = RecallTraining(mix="broad").model_dump()
    assert RecallTraining.model_validate(values).parts == MIXES["broad"]
    assert "mix" not in RecallTraining().model_dump()


def test_the_screening_of_one_model_is_asked_what_no_table_reports():
    screen = load_sweep("one-model-screen")
    assert len(runs_of(screen)) == len(screen.arms)
    screened = {(cell.label, cell.length) for cell in screen.cells}
    reported = {(cell.label, cell.length) for name in ("transfer", "token-gate") for cell in load_sweep(name).cells}
    assert not screened & reported
    assert screen.own_queries
    assert screen.seeds == (100,)


def test_all_rounds_of_the_screening_ask_the_same():
    first, second, third, *seeds_too = (
        load_sweep(f"one-model-screen{suffix}") for suffix in ("", "-2", "-3", "-4", "-5")
    )
    for later in (second, third):
        assert len(runs_of(later)) == len(later.arms)
        assert (first.cells, first.seeds, first.own_queries) == (later.cells, later.seeds, later.own_queries)
    for later in seeds_too:
        assert len(runs_of(later)) == 3 * len(later.arms)
        assert (first.cells, first.own_queries) == (later.cells, later.own_queries)
    long = {run.arm for run in runs_of(third) if run.training.steps == 12000}
    assert long == set(list(third.arms)[: third.together])  # a group of their own
    steps = {run.arm: run.training.steps for run in runs_of(second)}
    assert {steps.pop(name) for name in ("attention", "mamba2")} == {8000}
    assert set(steps.values()) == {run.training.steps for run in runs_of(first)}


def test_the_chosen_arm_is_reported_on_seeds_and_cells_that_chose_nothing():
    chosen, rivals = load_sweep("one-model-late"), load_sweep("one-model-rivals")
    screens = [load_sweep(f"one-model-screen{suffix}") for suffix in ("", "-2", "-3", "-4", "-5")]
    screened = {(cell.label, cell.length) for screen in screens for cell in screen.cells}
    assert not screened & {(cell.label, cell.length) for cell in chosen.cells}
    assert not {*chosen.seeds} & {seed for screen in screens for seed in screen.seeds}
    assert chosen.cells == rivals.cells
    assert {*rivals.seeds} < {*chosen.seeds}
    assert rivals.learning_rates == chosen.learning_rates
