"""recall sweeps: which runs there are, what they are asked, what is refused."""

from collections import Counter

import pytest

from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.measure import measure_together
from echo_lm.evals.sweeps.runs import runs_of
from echo_lm.models.common.errors import UserError
from tests.helpers.tiny_sweep import IN_TASK, SWEEP, ids, sweep_file


def test_what_is_compared_with_changes_no_run_and_what_is_asked_changes_all(tmp_path):
    plain = ids(tmp_path)
    published = {"source": "a paper", "means": {"SSM": {"niah": 52.0}}}
    cell = {"task": "niah", "pairs": 1, "length": 64, "percent": {"SSM": 2.0}}
    assert len(set(plain)) == 8
    assert ids(tmp_path, published=published | {"cells": [cell]}, mean_of=["niah"], description="new") == plain
    assert not set(ids(tmp_path, recall=SWEEP["recall"][:1])) & set(plain)
    assert not set(ids(tmp_path, own_queries=True)) & set(plain)
    arms = SWEEP["arms"] | {"two": SWEEP["arms"]["two"] | {"longest": 32}}
    changed = ids(tmp_path, arms=arms)
    assert [a == b for a, b in zip(changed, plain, strict=True)] == [True, False] * 4


def test_the_ids_of_the_transfer_table_stand():
    """Results are found by these. A change of a sweep, of a preset or of the hash repeats all of its runs."""
    assert runs_of(load_sweep("transfer"))[0].id == "6602d7980a663eb4"


def test_the_in_task_table_has_its_cells():
    runs = runs_of(load_sweep("mqar50m"))
    assert Counter(run.arm for run in runs) == {"echo": 84, "mamba2": 18, "hybrid": 18}
    runs = runs_of(load_sweep("mqar50m-64"))
    assert Counter(run.arm for run in runs) == {"echo": 9, "echo-token": 3, "hybrid": 6}


WHOLE = (
    "transfer transfer-overwrites ablations length length-rates length-ideas length-noise "
    "write-cost token-gate token-gate-seeds needle-million two-hops"
)


@pytest.mark.parametrize("name", WHOLE.split())
def test_the_tables_that_come_with_the_project_are_whole(name):
    sweep = load_sweep(name)
    runs = runs_of(sweep)
    assert len({run.id for run in runs}) == len(sweep.arms) * len(sweep.learning_rates) * len(sweep.seeds)
    assert all(cell.sequences > 0 for cell in sweep.cells)


def test_a_model_for_each_cell_learns_that_cell_alone(tmp_path):
    runs = runs_of(load_sweep(sweep_file(tmp_path, **IN_TASK)))
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
    kept = {run.id for run in runs_of(load_sweep(sweep_file(tmp_path, **fewer)))}
    assert kept < {run.id for run in runs}
    assert len(kept) == 3
    dearer = IN_TASK | {"each_cell": {"tokens": 3100, "batch_tokens": 100}}
    assert sum(run.id in {run.id for run in runs} for run in runs_of(load_sweep(sweep_file(tmp_path, **dearer)))) == 1


def test_a_curriculum_of_cells_begins_with_shorter_gaps(tmp_path):
    each = IN_TASK["each_cell"] | {"curriculum": {"gaps": [4, 4, 8], "lengthen_at": 0.9}}
    runs = runs_of(load_sweep(sweep_file(tmp_path, **IN_TASK | {"each_cell": each})))
    plain = {run.id for run in runs_of(load_sweep(sweep_file(tmp_path, **IN_TASK)))}
    assert not plain & {run.id for run in runs}
    for run in runs:
        (cell,) = run.cells
        shortest = cell.length - cell.gap
        gaps = (4, 4) if cell.gap == 4 else (4, 4, 8, 16)
        assert run.training.lengths == tuple(shortest + gap for gap in gaps)
        assert (run.training.tokens, run.training.lengthen_at) == (6000 if run.arm == "two" else 3000, 0.9)
        rows = [run.training.batch_at(length) for length in run.training.lengths]
        assert all(n * length <= 100 for n, length in zip(rows, run.training.lengths, strict=True))
    trained = measure_together(load_sweep(sweep_file(tmp_path, **IN_TASK | {"each_cell": each})), [runs[1]])[0]
    assert 2900 < trained["tokens"] <= 3000


def test_a_rate_of_its_own_makes_one_run(tmp_path):
    arms = SWEEP["arms"] | {"two": SWEEP["arms"]["two"] | {"training": {"learning_rate": 0.002}}}
    runs = runs_of(load_sweep(sweep_file(tmp_path, arms=arms)))
    assert [run.training.learning_rate for run in runs if run.arm == "two"] == [0.002, 0.002]
    assert [run.seed for run in runs if run.arm == "two"] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"published": {"source": "", "means": {"SSM": {"naih": 1.0}}}}, "'naih' is not evaluated in it"),
        ({"published": {"source": "", "means": {"SSM": {"niah": 101.0}}}}, "101"),
        ({"mean_of": ["economy"]}, "'economy' is not evaluated in it"),
        ({"arms": {"one": SWEEP["arms"]["one"] | {"longest": 16}}}, "no cell of niah is evaluated for every arm"),
        ({"publishd": {}}, "published"),
        ({"arms": {"one": SWEEP["arms"]["one"] | {"only": [[3, 5]]}}}, "arm one: no cell has 3 pairs and a gap of 5"),
        ({"each_cell": {"tokens": 10}}, "batch_tokens"),
        ({"vocabulary": {"num_keys": 1}}, r"mqar-2 needs 2 keys, there are 1 \(`vocabulary: num_keys`\)"),
        ({"vocabulary": {"keys": 99}}, "keys"),
        (
            {"recall": [SWEEP["recall"][0] | {"pairs": [8], "lengths": [16]}]},
            r"sweep .*: recall task niah: length 16 is too short for 8 pairs: at least \d+",
        ),
        (
            {
                "arms": {"one": SWEEP["arms"]["one"] | {"prefix_mask": True}},
                "recall": [SWEEP["recall"][0] | {"recurrent": True}],
            },
            "arm one: `prefix_mask` is for parallel passes",
        ),
        ({"arms": {"one": SWEEP["arms"]["one"] | {"tokens": 100}}}, "arm one: `tokens` .* needs `each_cell`"),
    ],
)
def test_a_wrong_table_gives_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load_sweep(sweep_file(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"gate_penalty": 0.1}, "arm one: gate_penalty needs SKA layers with a write gate, its model has none"),
        ({"steps": 0}, "arm one: .*steps"),
        (
            {"gate_penalty": 0.1, "stop_at": 0.9},
            "arm one: .*gate_penalty grows with the steps, which stop_at cuts short",
        ),
        ({"gate_penalty": 0.1, "tokens": 900}, "arm one: .*gate_penalty grows with the steps, which tokens cuts short"),
        ({"cooldown": 9}, "arm one: .*cooldown follows where the training stops: it needs `stop_at`"),
        ({"lengths": [32, 64], "tokens": 100}, "arm one: .*tokens is 100: a step takes up to 256"),
        (
            {"lengths": [32, 64], "tokens": 1000, "lengthen_at": 0.9},
            "arm one: .*1,000 tokens may be 7 steps: steps is 3",
        ),
        (
            {"lengths": [64, 8], "pairs": [4]},
            r"arm one: recall task \w+: length 8 is too short for \d pairs: at least \d+",
        ),
        ({"lengthen_at": 0.9}, "arm one: .*lengthen_at shares out `tokens`: give it a number of them"),
    ],
)
def test_a_wrong_training_of_an_arm_gives_one_line(tmp_path, training, message):
    sweep = load_sweep(sweep_file(tmp_path, arms={"one": SWEEP["arms"]["one"] | {"training": training}}))
    with pytest.raises(UserError, match=message) as error:
        runs_of(sweep)
    assert "\n" not in str(error.value)
