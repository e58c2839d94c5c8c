"""Names, values and sizes that MLflow refuses: one never keeps the others from the record."""

import json

import pytest
import yaml

from echo_lm.models.common.files import read_json, write_json
from echo_lm.orchestration.tracking.mlflow import Tracker, track
from echo_lm.orchestration.tracking.points import EventPoints
from echo_lm.orchestration.tracking.values import mlflow_key, mlflow_keys, params, send
from tests.helpers.tracked_runs import client, history, write_evaluation


def test_a_name_is_changed_only_where_mlflow_refuses_it():
    assert mlflow_key("recall/mqar-4/length-64: a.b c") == "recall/mqar-4/length-64: a.b c"
    assert mlflow_key("harness/gsm8k/exact_match,strict-match") == "harness/gsm8k/exact_match_strict-match"
    assert mlflow_key("pass@1+") == "pass_1_"
    assert mlflow_key("a//b/../c/") == "a/_/b/_/c/_"
    long = [mlflow_key("x" * 300 + end) for end in "ab"]
    assert [len(key) for key in long] == [250, 250]
    assert long[0] != long[1]


def test_losses_and_epochs_of_sources_are_metrics():
    step = {"kind": "step", "time": 1.0, "step": 4, "loss": 2.0}
    step |= {"epochs": {"a@b": 0.5, "a,b": 1.5}, "loss_by_source": {"a@b": 2.5, "a,b": None}}
    points = {point.key: (point.value, point.step) for point in EventPoints().read([step])}
    assert points == {
        "train/loss": (2.0, 4),
        "train/epochs/a_b": (1.5, 4),
        "train/epochs/a_b_2": (0.5, 4),
        "train/loss_by_source/a_b_2": (2.5, 4),
    }


def test_names_that_differ_keep_names_that_differ():
    assert mlflow_keys(["a@b", "a,b", "a_b"]) == {"a_b": "a_b", "a,b": "a_b_2", "a@b": "a_b_3"}


@pytest.mark.parametrize(
    "name", ["exact_match,strict-match", "pass@1", "a//b", "../up", "/", "x" * 300, "Größe %", "line\n"]
)
def test_mlflow_takes_every_changed_name(run_folder, name):
    write_evaluation(run_folder, 20, 0.75, suite="odd", **{name: 0.5})
    run = track(run_folder)
    (key,) = [
        key for key, value in client(run_folder).get_run(run).data.metrics.items() if value == 0.5 and "odd/" in key
    ]
    assert history(run_folder, run, key) == [(20, 0.5)]


def test_values_that_are_no_numbers_are_named_once_and_the_others_sent(run_folder, caplog):
    bad = {"nan": float("nan"), "infinite": float("inf"), "none": None, "text": "high", "list": [1], "huge": 10**400}
    write_evaluation(run_folder, 20, 0.75, suite="odd", yes=True)
    path = run_folder / "evals" / "step_00000020" / "odd.json"
    result = read_json(path)
    path.write_text(json.dumps(result | {"metrics": result["metrics"] | bad}))
    tracker = Tracker(run_folder)
    assert tracker.sync(), tracker.problem
    assert tracker.sync()
    run = track(run_folder)
    metrics = client(run_folder).get_run(run).data.metrics
    assert {key for key in metrics if key.startswith("eval/odd/")} == {
        "eval/odd/recall/sysprompt-4/length-64",
        "eval/odd/yes",
    }
    own = [record for record in caplog.records if "does not take" in record.message]
    assert len(own) == 1
    assert "5 more" in own[0].message


def test_a_time_or_step_out_of_range_leaves_the_others(run_folder):
    write_json(
        run_folder / "evals" / "step_00000030" / "far.json",
        {"suite": "far", "step": 2**70, "started": -5.0, "ended": -1.0, "metrics": {"a": 1.0}},
    )
    run = track(run_folder)
    assert history(run_folder, run, "eval/recall-quick/recall/sysprompt-4/length-64") == [(20, 0.75)]


def test_parameters_of_any_name_and_length_are_sent(run_folder):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    config["data"] |= {"a,b": 1, "": 2, "long": "y" * 9000, "x" * 300: 3} | {f"many{i}": i for i in range(250)}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
    stored = client(run_folder).get_run(track(run_folder)).data.params
    assert stored["data.a_b"] == "1"
    assert len(stored["data.long"]) == 6000
    assert stored["data.many249"] == "249"
    assert "3" in [value for key, value in stored.items() if key.startswith("data.xxx")]


def test_what_mlflow_refuses_for_reasons_of_its_own_is_found_among_the_others(run_folder):
    """A parameter that another process sent with another value: the whole batch is refused."""
    mlflow = client(run_folder)
    run = track(run_folder)
    values = {f"new{i}": i for i in range(20)} | {"train.steps": "other"}
    refused = send(mlflow, run, "params", params(values))
    assert [name for name, _ in refused] == ["train.steps"]
    assert {f"new{i}" for i in range(20)} <= set(mlflow.get_run(run).data.params)


def test_a_folder_whose_name_mlflow_refuses_for_a_model_or_a_filter(run_folder):
    odd = run_folder.with_name("it's 3:4")
    run_folder.rename(odd)
    (odd / "environment.json").unlink()  # its id is then the folder's name
    first = track(odd)
    assert track(odd) == first
