"""A suite on a checkpoint: result file, no work twice, and checkpoints or datasets that do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from echo_lm.data_prep.config import DatasetConfig, SourceConfig, TokenizerConfig
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.data_prep.recall import TASKS, minimum_length
from echo_lm.evals.config import Suite
from echo_lm.evals.measurements.recall_cells import RecallGrid
from echo_lm.evals.protocols.language import LanguageConfig
from echo_lm.evals.runner import evaluate_run, run_suite
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import write_json

SUITE = Suite(
    name="small",
    batch_tokens=2048,
    protocols={
        "recall": (
            RecallGrid(task="sysprompt", pairs=(1, 4), lengths=(64,), queries=64),
            RecallGrid(task="niah", pairs=(2,), lengths=(64, 128), queries=32, options={"depth": 0.5}),
        ),
        "language": LanguageConfig(tokens=300, sequence_length=64),
    },
)


def evaluate(model_folder, dataset, output: Path, suite: Suite = SUITE, **options):
    return run_suite(model_folder, suite, dataset.folder, output, step=100, tokens=6400, **options)


def test_the_result_file_says_it_all(dataset, model_folder, tmp_path):
    progress = []
    output = tmp_path / "evals" / "small.json"
    result = evaluate(model_folder, dataset, output, on_progress=lambda *counts: progress.append(counts))
    assert json.loads(output.read_text()) == result
    assert (result["suite"], result["step"], result["tokens"]) == ("small", 100, 6400)
    assert result["started"] < result["ended"]
    cells = [(row["task"], row["pairs"], row["length"]) for row in result["rows"]]
    assert cells == [("sysprompt", 1, 64), ("sysprompt", 4, 64), ("niah", 2, 64), ("niah", 2, 128)]
    assert result["rows"][1].keys() >= {"queries", "correct", "accuracy", "low", "high", "chance", "open_accuracy"}
    assert result["metrics"]["recall/sysprompt-4/length-64"] == result["rows"][1]["accuracy"]
    assert "recall/niah-2-depth-0.5/length-128" in result["metrics"]
    assert result["metrics"]["language/bits_per_byte"] > 0
    assert progress[-1][0] == progress[-1][1]
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert len(progress) > len(cells) + 1, "also within a cell"


def test_the_same_evaluation_gives_the_same_numbers_and_another_seed_others(dataset, model_folder, tmp_path):
    first = evaluate(model_folder, dataset, tmp_path / "a.json")
    again = evaluate(model_folder, dataset, tmp_path / "b.json")
    other = evaluate(model_folder, dataset, tmp_path / "c.json", seed=1)
    assert (first["rows"], first["metrics"]) == (again["rows"], again["metrics"])
    assert first["metrics"] != other["metrics"]


def test_a_model_with_random_weights_scores_within_its_interval_of_chance(dataset, model_folder, tmp_path):
    grids = tuple(
        RecallGrid(task=task, pairs=(4,), lengths=(max(64, minimum_length(task, pairs=4)),), queries=1000)
        for task in sorted(TASKS)
    )
    result = evaluate(
        model_folder, dataset, tmp_path / "chance.json", Suite(name="chance", protocols={"recall": grids})
    )
    for row in result["rows"]:
        assert row["low"] <= row["chance"] <= row["high"], row


def test_a_result_that_is_there_is_not_computed_again(dataset, model_folder, tmp_path):
    output = tmp_path / "small.json"
    first = evaluate(model_folder, dataset, output)
    written = output.stat().st_mtime_ns

    def never(done: int, total: int) -> None:
        pytest.fail("something was computed")

    assert evaluate(model_folder, dataset, output, on_progress=never) == first
    assert output.stat().st_mtime_ns == written


@pytest.mark.parametrize("change", ["weights", "suite", "seed"])
def test_a_result_of_something_else_is_computed_again(dataset, model_folder, tmp_path, change):
    output = tmp_path / "small.json"
    first = evaluate(model_folder, dataset, output)
    folder, suite, seed = tmp_path / "model", SUITE, 0
    shutil.copytree(model_folder, folder)
    if change == "weights":
        tensors = load_file(folder / "model.safetensors")
        tensors["embedding.weight"] += 0.1 * torch.randn(
            tensors["embedding.weight"].shape, generator=torch.Generator().manual_seed(0)
        )
        save_file(tensors, folder / "model.safetensors")
    elif change == "suite":
        language = LanguageConfig(tokens=200, sequence_length=64)
        suite = SUITE.model_copy(update={"protocols": SUITE.protocols | {"language": language}})
    else:
        seed = 1
    second = evaluate(folder, dataset, output, suite, seed=seed)
    assert second["metrics"] != first["metrics"]
    assert json.loads(output.read_text()) == second


def test_a_run_is_evaluated_at_every_complete_checkpoint(dataset, model_folder, tmp_path):
    for step in (10, 20, 30):
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        shutil.copytree(model_folder, folder / "model")
        if step != 30:  # half written
            write_json(folder / "complete.json", {"step": step, "tokens": step * 64})
    quick = Suite(name="quick", protocols={"recall": SUITE.protocols["recall"][:1]})
    results = evaluate_run(tmp_path, [quick], dataset.folder)
    assert [(result["step"], result["tokens"]) for result in results] == [(10, 640), (20, 1280)]
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("evals/*/*"))
    assert found == ["evals/step_00000010/quick.json", "evals/step_00000020/quick.json"]


def test_a_run_without_checkpoints_is_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="no complete checkpoint"):
        evaluate_run(tmp_path, ["language"], dataset.folder)


def test_a_model_of_another_tokenizer_is_refused(dataset, model_folder, tmp_path):
    config = DatasetConfig(
        name="other",
        sources=(SourceConfig(kind="text", paths=dataset.manifest.config.sources[0].paths),),
        tokenizer=TokenizerConfig(vocab_size=400),
        heldout_fraction=0.2,
    )
    other = prepare(config, tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.json is not the tokenizer of"):
        run_suite(model_folder, SUITE, other, tmp_path / "out.json", step=1, tokens=1)
    assert not (tmp_path / "out.json").exists()


def test_a_model_with_too_few_ids_is_refused(dataset, model_folder, tmp_path):
    from echo_lm.models import build_model, preset, save_pretrained

    save_pretrained(build_model(preset("echo-1m", vocab_size=300)), tmp_path / "model")
    with pytest.raises(UserError, match="vocabulary of 300"):
        evaluate(tmp_path / "model", dataset, tmp_path / "out.json")


def test_a_diverged_model_is_one_clear_line(dataset, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["embedding.weight"][:] = float("nan")
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError, match=r"not finite.*diverged"):
        evaluate(tmp_path / "model", dataset, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("missing", ["model", "dataset"])
def test_a_missing_folder_is_one_clear_line(dataset, model_folder, tmp_path, missing):
    model = tmp_path if missing == "model" else model_folder
    data = tmp_path if missing == "dataset" else dataset.folder
    with pytest.raises(UserError, match="holds no model" if missing == "model" else "not a prepared dataset"):
        run_suite(model, SUITE, data, tmp_path / "out.json", step=1, tokens=1)
