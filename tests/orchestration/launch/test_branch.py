"""`echo-lm branch` and `--amend` on the command line; what they make is trained in tests/pipeline/run/test_lineage.py."""

import shutil

import pytest
from typer.testing import CliRunner

from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.launch.amend import amend_run
from echo_lm.orchestration.launch.target import resolve_target
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.lineage import read_lineage
from tests.helpers.trainings import train_all


def echo(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


def refused(message: str, *arguments) -> None:
    with pytest.raises(UserError, match=message) as caught:
        echo(*arguments)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, data_root):
    """A finished run of four steps."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "trunk")
    config = load_config("smoke", ["name=trunk", "train.steps=4", "run.checkpoint_every=2", "run.workers=1"])
    run.prepare(config, data_root / config.data.name)
    train_all([run.path])
    return run.path


def test_branch_sets_up_a_run_that_is_ready_to_train(trunk):
    output = echo("branch", trunk, "--step", 2, "name=cool", "train.steps=6", "train.learning_rate=1e-3")
    child = trunk.parent / "cool"
    assert f"{child} begins from trunk at step 2 (everything, content " in output
    assert f"`echo-lm train {child}`" in output
    config = RunFolder(child).load_config()
    assert (config.name, config.train.steps, config.train.learning_rate) == ("cool", 6, 1e-3)
    assert config.start_from.content == read_lineage(child).parent.content
    assert RunFolder(child).data_folder() == RunFolder(trunk).data_folder()
    refused("cool is a run already: choose another name for the branch", "branch", trunk, "name=cool", "train.steps=6")


def test_what_cannot_be_branched_is_one_line(trunk, tmp_path, data_root):
    refused("needs a name of its own: add name=", "branch", trunk, "train.steps=9")
    refused("no complete checkpoint of step 3: it has 2, 4", "branch", trunk, "--step", 3, "name=x")
    refused("is not a run folder", "branch", tmp_path, "name=x")
    refused("its d_model is 32, the run's is 64", "branch", trunk, "--step", 2, "name=x", "model.d_model=64")
    refused("unknown key train.lr", "branch", trunk, "name=x", "train.lr=1")
    assert [path.name for path in trunk.parent.glob("x*")] == []


def test_another_tokenizer_is_refused_before_the_folder_is_made(trunk, tmp_path, data_root):
    changes = ["data.name=other", "data.sources=[{kind: python-stdlib, limit_documents: 30}]"]
    prepare(load_config("smoke", changes).data, tmp_path)
    message = "was trained with another tokenizer than that of .*other"
    refused(message, "branch", trunk, "--step", 2, "name=y", "--data", tmp_path, *changes)
    assert not (trunk.parent / "y").exists()


def test_amend_says_what_changes_and_a_run_is_not_changed_without_it(trunk, tmp_path, capsys):
    folder = tmp_path / "amended"
    shutil.copytree(trunk, folder)
    refused("another train.steps .* or change it from here on with --amend", "train", folder, "train.steps=8")
    config, run = resolve_target(str(folder), ["train.steps=8"], tmp_path)
    amend_run(run, config)
    assert "from step 4 on train.steps is 8 (was 4)" in " ".join(capsys.readouterr().out.split())
    assert not run.finished()
    refused("there is no run at .*none to amend", "train", "smoke", "name=none", "--amend", "--runs", tmp_path)
    with run.lock():
        refused("is in use by another process", "train", folder, "train.steps=9", "--amend")
