"""The moving average of the weights: its formula, sharded under ZeRO, resumed bit for bit, and evaluated beside the weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.models import build_model
from echo_lm.models.common.files import read_json
from echo_lm.orchestration.evaluation.jobs import due_jobs
from echo_lm.pipeline.checkpoint.format import check_checkpoint, latest_checkpoint
from echo_lm.pipeline.config import load_config, parse_config, save_config
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.report import write_report
from tests.helpers.trainings import train_all

OVERRIDES = ["train.steps=3", "run.checkpoint_every=1", "train.ema_decay=0.3", "evaluation.every=3"]


def go_on(folder: Path) -> None:
    """Forget where a run was to stop, once it has stopped there."""
    run = RunFolder(folder)
    if latest_checkpoint(run):
        save_config(parse_config(run.load_config().resolved() | {"run": {"workers": 2}}, "run"), run.config_file)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_root):
    """The same run under two ZeRO stages on two processes, and one that stopped on the way and went on."""
    root, found = tmp_path_factory.mktemp("averages"), {}
    for name, override in (("two", "run.zero_stage=2"), ("three", "run.zero_stage=3"), ("stopped", "run.stop_step=2")):
        config = load_config("smoke", [*OVERRIDES, override, f"name={name}"])
        found[name] = RunFolder(root / name)
        found[name].prepare(config, data_root / config.data.name)
    train_all([root / name for name in (*found, "stopped")], world=2, before=go_on)
    assert all(run.finished() for run in found.values())
    return found


def average_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(run) / "ema" / "model.safetensors")


@pytest.mark.parametrize("name", ["two", "three"])
def test_it_is_the_formula_on_the_weights_after_every_step(runs, name):
    run = runs[name]
    config = run.load_config()
    vocabulary = Dataset.open(run.data_folder()).tokenizer().get_vocab_size()
    model = build_model(config.model.resolve(vocabulary), seed=config.seed)
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for step in range(1, 4):
        weights = load_file(run.checkpoints / f"step_{step:08d}" / "model" / "model.safetensors")
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {key: decay * value + (1 - decay) * weights[key] for key, value in expected.items()}
    average = average_of(run)
    assert average.keys() == expected.keys()
    for key, value in average.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, weights[key]) for key, value in average.items())


def test_a_run_that_stopped_has_the_average_of_the_undisturbed_one(runs):
    expected = average_of(runs["two"])
    assert all(torch.equal(value, expected[name]) for name, value in average_of(runs["stopped"]).items())


def test_it_is_part_of_the_checkpoint_and_evaluated_beside_the_weights(runs):
    run = runs["two"]
    checkpoint = latest_checkpoint(run)
    check_checkpoint(checkpoint)
    assert "ema/model.safetensors" in read_json(checkpoint / "complete.json")["sha256"]
    jobs = due_jobs(run, run.load_config())
    assert [job.name for job in jobs] == ["step_00000003/language", "step_00000003/language-ema"]
    for job in jobs:
        job.run()
    raw, average = (read_json(job.output) for job in jobs)
    assert (raw["suite"], average["suite"]) == ("language", "language-ema")
    bits = average["metrics"]["language/bits_per_byte"]
    assert raw["metrics"]["language/bits_per_byte"] != bits
    assert f"| moving average of its weights | {bits:.3f} |" in write_report(run.path).read_text()
