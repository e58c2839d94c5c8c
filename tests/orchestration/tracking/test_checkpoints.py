"""Checkpoints in MLflow: a model each that can be loaded, with the metrics of its evaluations and their dataset."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from echo_lm.models import build_model, from_pretrained, save_pretrained
from echo_lm.models.common.files import sha256_file, write_json
from echo_lm.orchestration.tracking.client import default_tracking_uri
from echo_lm.orchestration.tracking.mlflow import Tracker, track
from echo_lm.pipeline.run.events import EventLog
from tests.helpers.tracked_runs import ACCURACY, START, all_runs, children, client, write_evaluation

TOKENS = [[1, 2, 3], [4, 5, 6]]


@pytest.fixture
def trained(run_folder, smoke, data_root) -> Path:
    """The run with its dataset and checkpoints at 10 and 20, the first of which is evaluated as well."""
    config = smoke("train.steps=20")
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config.resolved()))
    write_json(run_folder / "data.json", {"folder": str(data_root / config.data.name)})
    for step in (10, 20):
        write_checkpoint(run_folder, config.model.resolve(vocab_size=64), step)
    write_evaluation(run_folder, 10, 0.25)
    write_evaluation(run_folder, 20, 0.5, suite="recall-quick-ema")
    return run_folder


def write_checkpoint(folder: Path, model, step: int) -> None:
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    save_pretrained(build_model(model, seed=step), checkpoint / "model")
    hashes = {f"model/{path.name}": sha256_file(path) for path in (checkpoint / "model").iterdir()}
    write_json(checkpoint / "complete.json", {"step": step, "tokens": step * 64, "sha256": hashes})


def models(folder: Path) -> dict[str, object]:
    """The models of the run in MLflow, by checkpoint."""
    (run,) = all_runs(folder)
    found = client(folder).search_logged_models([run.info.experiment_id])
    assert len({model.tags["echo_lm.checkpoint"] for model in found}) == len(found), "a checkpoint has two models"
    return {model.tags["echo_lm.checkpoint"]: model for model in found}


def predicted(folder: Path, model_uri: str):
    import mlflow

    mlflow.set_tracking_uri(default_tracking_uri(folder))
    try:
        return mlflow.pyfunc.load_model(model_uri).predict(TOKENS)
    finally:
        mlflow.set_tracking_uri(None)


def expected(folder: Path, step: int):
    import torch

    with torch.no_grad():
        model = from_pretrained(folder / f"checkpoints/step_{step:08d}/model").eval()
        return torch.log_softmax(model(torch.tensor(TOKENS))[:, -1].float(), -1).numpy()


def test_each_checkpoint_is_a_model_with_its_metrics_and_their_dataset(trained):
    for _ in range(2):
        run = track(trained)
        found = models(trained)
        assert sorted(found) == ["step_00000010", "step_00000020"]
        outputs = client(trained).get_run(run).outputs.model_outputs
        assert {one.model_id: one.step for one in outputs} == {
            model.model_id: int(model.params["step"]) for model in found.values()
        }
    for step, accuracy in ((10, 0.25), (20, 0.75)):
        model = found[f"step_{step:08d}"]
        assert (model.status, model.name, model.params["step"]) == ("READY", f"small-step_{step:08d}", str(step))
        (metric,) = model.metrics  # that of the moving average is of other weights
        assert (metric.key, metric.value, metric.step) == (ACCURACY, accuracy, step)
        (dataset,) = client(trained).get_run(run).inputs.dataset_inputs
        assert (metric.dataset_name, metric.dataset_digest) == (dataset.dataset.name, dataset.dataset.digest)
        assert predicted(trained, f"models:/{model.model_id}") == pytest.approx(expected(trained, step), abs=1e-5)
    ids = {child.info.run_name: child.info.run_id for child in children(trained, run)}
    evaluated = {name: client(trained).get_run(child).inputs for name, child in ids.items()}
    assert [one.model_id for one in evaluated["step_00000010/recall-quick"].model_inputs] == [
        found["step_00000010"].model_id
    ]
    assert evaluated["step_00000020/recall-quick-ema"].model_inputs == []
    assert {len(inputs.dataset_inputs) for inputs in evaluated.values()} == {1}


def test_the_final_weights_alone_are_copied_and_outlive_the_run(trained):
    write_steps_and_finish(trained)
    track(trained)
    final, first = expected(trained, 20), models(trained)["step_00000010"]
    sizes = {path.name: path.stat().st_size for path in (trained / "checkpoints/step_00000010/model").iterdir()}
    stored = {Path(file.path).name for file in client(trained).list_logged_model_artifacts(first.model_id)}
    assert stored == {"MLmodel", "checkpoint.json"}
    assert sizes["model.safetensors"] > 1000
    shutil.rmtree(trained / "checkpoints")
    assert predicted(trained, "models:/small@final") == pytest.approx(final, abs=1e-5)
    with pytest.raises(Exception, match="the checkpoint was removed"):
        predicted(trained, f"models:/{first.model_id}")


def write_steps_and_finish(folder: Path) -> None:
    with EventLog(folder / "events.jsonl") as log:
        log.write("finish", time=START + 130, step=20, tokens=1280)


def test_other_weights_under_the_name_of_a_checkpoint_are_refused(trained, smoke):
    track(trained)
    model = models(trained)["step_00000010"]
    save_pretrained(
        build_model(smoke().model.resolve(vocab_size=64), seed=99), trained / "checkpoints/step_00000010/model"
    )
    with pytest.raises(Exception, match=r"model\.safetensors is missing, or another one than was recorded"):
        predicted(trained, f"models:/{model.model_id}")


def test_a_run_that_was_moved_is_found_where_it_is(trained):
    track(trained)
    moved = trained.rename(trained.with_name("elsewhere"))
    track(moved)
    model = models(moved)["step_00000010"]
    assert predicted(moved, f"models:/{model.model_id}") == pytest.approx(expected(moved, 10), abs=1e-5)


def test_a_model_that_was_left_half_made_is_made_again(trained):
    tracker = Tracker(trained)
    tracker.sync()
    whole = models(trained)["step_00000010"]
    mlflow = client(trained)
    mlflow.delete_logged_model(whole.model_id)
    half = mlflow.create_logged_model(
        whole.experiment_id, source_run_id=whole.source_run_id, tags={"echo_lm.checkpoint": "step_00000010"}
    )
    track(trained)
    again = models(trained)["step_00000010"]
    assert again.model_id not in (whole.model_id, half.model_id)
    assert predicted(trained, f"models:/{again.model_id}") == pytest.approx(expected(trained, 10), abs=1e-5)


def test_links_out_of_a_checkpoint_are_not_sent(trained, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (trained / "checkpoints/step_00000020/model/evil").symlink_to(tmp_path / "secret")
    write_steps_and_finish(trained)
    track(trained)
    final = models(trained)["step_00000020"]
    names = {Path(file.path).name for file in client(trained).list_logged_model_artifacts(final.model_id)}
    assert {"model.safetensors", "checkpoint.json"} <= names
    assert "evil" not in names


def test_damaged_records_of_checkpoints_leave_the_others(trained):
    for step, record in ((30, {"step": "x"}), (40, []), (50, {"step": 50, "sha256": "no"})):
        place = trained / "checkpoints" / f"step_{step:08d}"
        (place / "model").mkdir(parents=True)
        (place / "complete.json").write_text(json.dumps(record))
    track(trained)
    assert sorted(models(trained)) == ["step_00000010", "step_00000020", "step_00000050"]
