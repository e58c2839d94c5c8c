"""Keys that were renamed: both spellings are read, one is written, and hashes keep the first."""

import json

import pytest

from echo_lm.evals.config import Suite
from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.runs import runs_of
from echo_lm.evals.sweeps.training_config import RecallTraining
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.renamed_keys import RENAMED, with_new_keys, with_old_keys
from echo_lm.pipeline.config import RunConfig, load_config, parse_config, save_config
from echo_lm.pipeline.run.events import last_events, read_events
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.tiny_sweep import SWEEP, sweep_file

IDENTITY = "3d30c324821d5f46"  # of recipe smoke with train.write_cost=0.5, by commit 94d8ee0


def test_a_recipe_may_use_either_spelling():
    old, new = load_config("smoke", ["train.write_cost=0.5"]), load_config("smoke", ["train.gate_penalty=0.5"])
    assert old == new
    assert old.train.gate_penalty == 0.5
    assert "gate_penalty" in old.resolved()["train"]
    assert "write_cost" not in old.resolved()["train"]


def test_the_identity_is_that_of_the_first_spelling():
    """Of commit 94d8ee0, which knew the old key alone; a key at its default is not in it, as runs are older than the key."""
    hashed = load_config("smoke", ["train.gate_penalty=0.5"]).identity_dump()["train"]
    assert hashed["write_cost"] == 0.5
    assert "gate_penalty" not in hashed
    assert not {"write_cost", "gate_penalty"} & load_config("smoke").identity_dump()["train"].keys()
    assert load_config("smoke", ["train.gate_penalty=0.5", "model.preset_version=1"]).identity().startswith(IDENTITY)


def test_a_stored_run_is_gone_on_with_under_either_spelling(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    stored = load_config("smoke", ["train.gate_penalty=0.5"])
    save_config(stored, run.config_file)
    run.config_file.write_text(run.config_file.read_text().replace("gate_penalty", "write_cost"))
    assert run.load_config() == stored
    run.check(stored)
    with pytest.raises(UserError, match=r"another train\.gate_penalty \(stored 0\.5, asked 0\.25\)"):
        run.check(load_config("smoke", ["train.gate_penalty=0.25"]))


def test_two_spellings_with_two_values_are_one_line():
    values = load_config("smoke").resolved()
    values["train"] |= {"write_cost": 0.5, "gate_penalty": 0.25}
    with pytest.raises(
        UserError, match=r"^here: train: write_cost is the old name of gate_penalty: give one of the two$"
    ):
        parse_config(values, "here")
    values["train"] |= {"gate_penalty": 0.5}
    assert parse_config(values, "here").train.gate_penalty == 0.5


def test_an_arm_of_a_sweep_may_differ_in_a_key_that_the_sweep_spells_otherwise(tmp_path):
    """The training that all arms share is written with today's keys, an old file's arms are not."""
    ska = {"preset": "paper-1m-l2", "model": {}}
    arms = {"one": ska, "two": ska | {"training": {"write_cost": 3.0}}}
    training = SWEEP["training"] | {"write_cost": 1.0}
    old = runs_of(load_sweep(sweep_file(tmp_path, arms=arms, training=training, own_questions=True)))
    assert {run.arm: run.training.gate_penalty for run in old} == {"one": 1.0, "two": 3.0}
    arms["two"]["training"] = {"gate_penalty": 3.0}
    training = SWEEP["training"] | {"gate_penalty": 1.0}
    new = runs_of(load_sweep(sweep_file(tmp_path, arms=arms, training=training, own_queries=True)))
    assert [run.id for run in new] == [run.id for run in old]


def test_a_suite_keeps_its_hash():
    old = Suite(name="s", adapt={"write_cost": 0.1}, protocols={"language": {"tokens": 9, "sequence_length": 3}})
    new = Suite(name="s", adapt={"gate_penalty": 0.1}, protocols={"language": {"tokens": 9, "sequence_length": 3}})
    assert old.sha256 == new.sha256
    assert RecallTraining(gate_penalty=0.1).identity_dump()["write_cost"] == 0.1


def test_events_are_read_under_todays_keys(tmp_path):
    line = json.dumps({"kind": "step", "time": 1.0, "step": 1, "gate_openness": 0.25}) + "\n"
    (tmp_path / "events.jsonl").write_text(line)
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event["gate_mean"] == 0.25
    assert last_events(tmp_path / "events.jsonl", bool) == [event]


@pytest.mark.parametrize("what", RENAMED)
def test_the_table_is_read_and_written_back(what):
    old = {key: number for number, key in enumerate(RENAMED[what])} | {"other": "kept"}
    new = with_new_keys(what, old)
    assert not new.keys() & RENAMED[what].keys()
    assert with_old_keys(what, new) == old


def test_a_key_that_never_was_is_still_refused():
    with pytest.raises(UserError, match=r"unknown key train\.write_costs: "):
        load_config("smoke", ["train.write_costs=1"])
    assert "write_cost" not in RunConfig.model_fields["train"].annotation.model_fields
