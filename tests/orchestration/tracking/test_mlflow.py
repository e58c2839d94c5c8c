"""The record in MLflow: complete, never doubled, and built again after an outage."""

import base64
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from echo_lm.models import build_model, from_pretrained, save_pretrained
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import write_json
from echo_lm.orchestration.tracking.client import default_tracking_uri
from echo_lm.orchestration.tracking.mlflow import Tracker, track
from echo_lm.pipeline.run.events import EventLog
from tests.helpers.tracked_runs import (
    ACCURACY,
    START,
    all_runs,
    children,
    client,
    everything,
    history,
    write_evaluation,
    write_steps,
)


def test_a_replay_holds_what_the_files_hold(run_folder):
    run = track(run_folder)
    record = client(run_folder).get_run(run)
    assert record.info.run_name == "small"
    assert record.info.start_time == START * 1000
    assert record.info.status == "FAILED", "its log ends in 2023 without `finish` or `stop`"
    assert record.data.params["train.learning_rate"] == "0.001"
    assert record.data.params["data.sources"] == '["a", "b"]'
    assert record.data.params["environment.versions.torch"] == "2"
    assert record.data.tags["mlflow.source.git.commit"] == "abc123"
    assert history(run_folder, run, "train/loss") == [(step, 5 / step) for step in range(1, 21)]
    assert history(run_folder, run, "train/restarts") == [(0, 0), (10, 1)]
    assert history(run_folder, run, "train/checkpoint_seconds") == [(20, 0.5)]
    assert history(run_folder, run, f"eval/recall-quick/{ACCURACY}") == [(20, 0.75)]
    assert history(run_folder, run, "train/grad_norm") == [], "null is not a number"
    files = {file.path for file in client(run_folder).list_artifacts(run)}
    assert {"config.yaml", "environment.json", "evals"} <= files


def test_replaying_twice_leaves_one_run_and_no_value_twice(run_folder):
    first = track(run_folder)
    before = {key: history(run_folder, first, key) for key in client(run_folder).get_run(first).data.metrics}
    assert track(run_folder) == first
    assert len(all_runs(run_folder)) == 1
    assert before == {key: history(run_folder, first, key) for key in client(run_folder).get_run(first).data.metrics}


def test_a_tail_and_a_replay_build_the_same_record(run_folder):
    """The tail sees the log grow line by line, one of them torn, and evaluations come late."""
    whole = (run_folder / "events.jsonl").read_bytes()
    late = run_folder / "evals"
    late.rename(run_folder / "elsewhere")
    tracker = Tracker(run_folder)
    for end in range(0, len(whole), len(whole) // 7):
        (run_folder / "events.jsonl").write_bytes(whole[:end])
        assert tracker.sync()
    (run_folder / "events.jsonl").write_bytes(whole)
    (run_folder / "elsewhere").rename(late)
    assert tracker.sync()
    (run,) = all_runs(run_folder)
    run_id = run.info.run_id
    assert history(run_folder, run_id, "train/loss") == [(step, 5 / step) for step in range(1, 21)]
    assert history(run_folder, run_id, "train/restarts") == [(0, 0), (10, 1)]
    assert history(run_folder, run_id, f"eval/recall-quick/{ACCURACY}") == [(20, 0.75)]
    assert track(run_folder) == run_id


def test_an_evaluation_that_is_done_again_replaces_its_values(run_folder):
    tracker = Tracker(run_folder)
    tracker.sync()
    write_evaluation(run_folder, 20, 0.5)  # as by a suite that was changed and kept its name
    write_evaluation(run_folder, 10, 0.25)
    tracker.sync()
    for _ in range(2):
        (run,) = all_runs(run_folder)
        values = history(run_folder, run.info.run_id, f"eval/recall-quick/{ACCURACY}")
        assert values == [(10, 0.25), (20, 0.5), (20, 0.75)]
        assert run.data.metrics[f"eval/recall-quick/{ACCURACY}"] == 0.5, "the later one counts"
        shown = {child.info.run_name: child.data.metrics for child in children(run_folder, run.info.run_id)}
        assert shown == {"step_00000010/recall-quick": {ACCURACY: 0.25}, "step_00000020/recall-quick": {ACCURACY: 0.5}}
        track(run_folder)


def test_two_suites_that_measure_the_same_have_a_curve_each(run_folder):
    write_evaluation(run_folder, 20, 0.25, suite="recall-full")
    run = track(run_folder)
    assert history(run_folder, run, f"eval/recall-quick/{ACCURACY}") == [(20, 0.75)]
    assert history(run_folder, run, f"eval/recall-full/{ACCURACY}") == [(20, 0.25)]
    assert len(children(run_folder, run)) == 2


def test_a_record_of_an_earlier_version_goes_on(run_folder):
    """Its evaluations' keys lack the suite; they stay, and the new ones hold all values."""
    run = track(run_folder)
    client(run_folder).log_metric(run, ACCURACY, 0.5, step=10)
    write_evaluation(run_folder, 10, 0.5)
    assert track(run_folder) == run
    assert history(run_folder, run, ACCURACY) == [(10, 0.5)]
    assert history(run_folder, run, f"eval/recall-quick/{ACCURACY}") == [(10, 0.5), (20, 0.75)]


def test_what_was_deleted_in_mlflow_while_a_run_goes_on_is_made_again(run_folder, caplog):
    tracker = Tracker(run_folder)
    assert tracker.sync()
    mlflow = client(run_folder)
    (first,) = all_runs(run_folder)
    mlflow.delete_run(first.info.run_id)
    assert tracker.sync(), tracker.problem
    (second,) = all_runs(run_folder)
    assert second.info.run_id != first.info.run_id
    mlflow.delete_experiment(second.info.experiment_id)
    assert all_runs(run_folder) == []
    with EventLog(run_folder / "events.jsonl") as log:
        write_steps(log, 21, 22, late=100)
    assert tracker.sync(), tracker.problem
    assert "restored with its runs" in caplog.text
    assert len(history(run_folder, second.info.run_id, "train/loss")) == 22


def test_a_deleted_experiment_is_restored(run_folder):
    run = track(run_folder)
    client(run_folder).delete_experiment(client(run_folder).get_run(run).info.experiment_id)
    assert track(run_folder) == run
    assert client(run_folder).get_run(run).info.lifecycle_stage == "active"


def test_a_damaged_result_leaves_the_others(run_folder, caplog):
    (run_folder / "evals" / "step_00000020" / "torn.json").write_text('{"suite": "to')
    write_json(run_folder / "evals" / "step_00000020" / "empty.json", {})
    run = track(run_folder)
    assert [child.info.run_name for child in children(run_folder, run)] == ["step_00000020/recall-quick"]
    assert caplog.text.count("MLflow does not take") == 1


def test_an_evaluation_is_a_run_below_its_run_once(run_folder):
    first = track(run_folder)
    for _ in range(2):
        (child,) = [run for run in everything(run_folder) if run.data.tags.get("mlflow.parentRunId") == first]
        assert child.info.run_name == "step_00000020/recall-quick"
        assert child.data.metrics == {ACCURACY: 0.75}
        assert (child.info.status, child.info.end_time) == ("FINISHED", (START + 125) * 1000)
        assert history(run_folder, child.info.run_id, ACCURACY) == [(20, 0.75)]
        assert track(run_folder) == first


def test_data_model_card_and_final_weights_are_registered_once(run_folder, smoke, data_root):
    config = smoke("train.steps=20")
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config.resolved()))
    write_json(run_folder / "data.json", {"folder": str(data_root / config.data.name)})
    checkpoint = run_folder / "checkpoints" / "step_00000020"
    save_pretrained(build_model(config.model.resolve(vocab_size=512), seed=0), checkpoint / "model")
    write_json(checkpoint / "complete.json", {"step": 20, "tokens": 1280})
    mlflow = client(run_folder)
    run = track(run_folder)
    assert mlflow.search_model_versions(f"run_id='{run}'") == [], "it has not finished"
    with EventLog(run_folder / "events.jsonl") as log:
        log.write("finish", time=START + 130, step=20, tokens=1280)
    for _ in range(2):
        assert track(run_folder) == run
        (version,) = mlflow.search_model_versions(f"run_id='{run}'")
        assert mlflow.get_model_version_by_alias("small", "final").version == version.version
        assert version.name == "small"
        assert "python-stdlib" in version.description
        assert "recall/sysprompt-4/length-64 | 0.75" in version.description
        (model,) = mlflow.search_logged_models([mlflow.get_run(run).info.experiment_id])
        assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "small", "version": version.version}]
        weights = {Path(file.path).name for file in mlflow.list_logged_model_artifacts(model.model_id)}
        assert {"MLmodel", "model.safetensors", "config.json"} <= weights
        (data,) = mlflow.get_run(run).inputs.dataset_inputs
        assert data.dataset.name == config.data.name
        assert [file.path for file in mlflow.list_artifacts(run, "data")] == ["data/manifest.json"]

    check_loads(run_folder, "models:/small@final")
    card = (run_folder / "model_card.md").read_text()
    write_json(run_folder / "data.json", {"folder": "/nowhere"})  # as on a machine without the data
    write_evaluation(run_folder, 20, 0.5)
    track(run_folder)
    assert (run_folder / "model_card.md").read_text() == card, "a new one would lack the licences"


def check_loads(run_folder, model_uri):
    """MLflow opens the model; it predicts what the model in the run folder predicts."""
    import mlflow
    import torch

    mlflow.set_tracking_uri(default_tracking_uri(run_folder))
    try:
        predicted = mlflow.pyfunc.load_model(model_uri).predict([[1, 2, 3], [4, 5, 6]])
    finally:
        mlflow.set_tracking_uri(None)
    model = from_pretrained(run_folder / "checkpoints/step_00000020/model").eval()
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3], [4, 5, 6]]))[:, -1]
    assert predicted == pytest.approx(torch.log_softmax(logits.float(), -1).numpy(), abs=1e-5)


def test_a_name_with_signs_is_registered_under_one_that_mlflow_takes(run_folder, smoke):
    (run_folder / "config.yaml").write_text(yaml.safe_dump(smoke("train.steps=20").resolved()))
    checkpoint = run_folder / "checkpoints" / "step_00000020"
    save_pretrained(build_model(smoke("train.steps=20").model.resolve(vocab_size=64), seed=0), checkpoint / "model")
    write_json(checkpoint / "complete.json", {"step": 20, "tokens": 1280})
    with EventLog(run_folder / "events.jsonl") as log:
        log.write("finish", time=START + 130, step=20, tokens=1280)
    odd = run_folder.rename(run_folder.with_name('it\'s: "50%"'))
    for _ in range(2):
        run = track(odd)
    assert client(odd).get_run(run).info.run_name == odd.name
    (version,) = client(odd).search_model_versions(f"run_id='{run}'")
    assert version.name == "it_s_ _50__"


def test_the_report_comes_with_its_pictures_and_links_lead_nowhere(run_folder, tmp_path, caplog):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (run_folder / "figures").mkdir()
    (run_folder / "figures/evil.png").symlink_to(secret)
    (run_folder / "figures/good.png").write_bytes(b"\x89PNG picture")
    os.mkfifo(run_folder / "figures/pipe.png")
    pictures = "![a](figures/good.png) ![b](figures/evil.png) ![c](figures/../../../secret.png)"
    (run_folder / "report.md").write_text(f"# Report\n\n{pictures}\n\n<script>1</script>\n")
    run = track(run_folder)
    mlflow = client(run_folder)
    assert {file.path for file in mlflow.list_artifacts(run, "figures")} == {"figures/good.png"}
    assert "a link that leads out of the run" in caplog.text
    page = Path(mlflow.download_artifacts(run, "report.html", str(tmp_path))).read_text()
    assert "data:image/png;base64,iVBORyBwaWN0dXJl" in page
    assert base64.b64encode(b"secret").decode() not in page
    assert "<script>" not in page
    experiment = mlflow.get_experiment(mlflow.get_run(run).info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_damaged_line_of_a_log_is_named_and_the_others_are_sent(run_folder, caplog):
    lines = (run_folder / "events.jsonl").read_text().splitlines()
    lines.insert(5, "nonsense")
    (run_folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    run = track(run_folder)
    assert len(history(run_folder, run, "train/loss")) == 20
    assert "events.jsonl, line 6 is not an event" in caplog.text


def test_the_use_of_the_machine_stands_among_the_system_metrics(run_folder):
    with EventLog(run_folder / "events.jsonl") as log:
        log.write("step", time=START + 122, step=21, loss=0.2, cpu_percent=87.5, gpu_percent=99.0)
    run = track(run_folder)
    assert history(run_folder, run, "system/cpu_utilization_percentage") == [(21, 87.5)]
    assert history(run_folder, run, "system/gpu_0_utilization_percentage") == [(21, 99.0)]


def test_finish_ends_the_run_and_a_start_opens_it_again(run_folder):
    tracker = Tracker(run_folder)
    tracker.sync()
    with EventLog(run_folder / "events.jsonl") as log:
        log.write("finish", time=START + 130, step=20, tokens=1280)
    tracker.sync()
    (run,) = all_runs(run_folder)
    assert (run.info.status, run.info.end_time) == ("FINISHED", (START + 130) * 1000)
    assert "events.jsonl" in {file.path for file in client(run_folder).list_artifacts(run.info.run_id)}
    with EventLog(run_folder / "events.jsonl") as log:
        log.write("start", time=START + 140, step=20)
    tracker.sync()
    assert all_runs(run_folder)[0].info.status == "RUNNING"


def test_an_outage_is_logged_once_and_caught_up(run_folder, caplog):
    database = run_folder.parent.parent / "mlflow.db"
    away = database.with_suffix(".away")
    tracker = Tracker(run_folder)
    assert tracker.sync()
    shutil.move(database, away)
    database.mkdir()  # sqlite cannot open a folder
    with EventLog(run_folder / "events.jsonl") as log:
        write_steps(log, 21, 25, late=100)
    with caplog.at_level(logging.WARNING, logger="echo_lm.orchestration.tracking.mlflow"):
        assert not Tracker(run_folder).sync()
        caplog.clear()
        fresh = Tracker(run_folder)
        assert not fresh.sync()
        assert not fresh.sync()
    own = [record for record in caplog.records if record.name == "echo_lm.orchestration.tracking.mlflow"]
    assert len(own) == 1
    database.rmdir()
    shutil.move(away, database)
    assert fresh.sync()
    (run,) = all_runs(run_folder)
    assert [step for step, _ in history(run_folder, run.info.run_id, "train/loss")] == list(range(1, 26))


def test_a_replay_without_mlflow_is_one_clear_line(run_folder):
    with pytest.raises(UserError, match="does not answer") as raised:
        track(run_folder, "http://127.0.0.1:9")
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.yaml"):
        track(tmp_path)


def test_a_thousand_steps_take_seconds(run_folder):
    with EventLog(run_folder / "events.jsonl") as log:
        for step in range(21, 1021):
            fields = {name: 1.0 for name in ("loss", "loss_text", "loss_recall", "learning_rate", "tokens_per_second")}
            log.write("step", time=START + 100 + step, step=step, tokens=step, data_stall_seconds=0.0, **fields)
    started = time.process_time()  # of this process: MLflow's client and sqlite are in it, what else runs here is not
    run = track(run_folder)
    assert time.process_time() - started < 10
    assert len(history(run_folder, run, "train/loss")) == 1020


def test_importing_the_module_does_not_load_mlflow():
    code = "import json, sys, echo_lm.orchestration.tracking.mlflow\n"
    code += "print(json.dumps([name for name in sys.modules if name.startswith('mlflow')]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(output.stdout) == []
