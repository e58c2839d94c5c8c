"""What people do with run folders: stop at a step, rename, copy, move, damage, and go on with `echo-lm train FOLDER`."""

import json
import shutil

import pytest
from torch.distributed.launcher.api import LaunchConfig
from typer.testing import CliRunner

from echo_lm.evals.layout import complete_checkpoints
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.evaluation.jobs import missing_jobs
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.identity import run_id
from echo_lm.pipeline.run.reader import RunFiles

pytestmark = pytest.mark.usefixtures("forking")

SHORT = ["train.steps=8", "run.checkpoint_every=2", "run.workers=1", "evaluation.every=2"]


def echo(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


def losses(run) -> list[float]:
    return [event["loss"] for event in steps(read_events(run / "events.jsonl"))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_root):
    """The losses of a run that nobody disturbed."""
    runs = tmp_path_factory.mktemp("undisturbed")
    echo("train", "smoke", *SHORT, "--runs", runs, "--data", data_root)
    return losses(runs / "smoke")


@pytest.fixture(scope="module")
def put_away(tmp_path_factory, data_root):
    """A tree with data and a run that stopped at step 5, moved from where it was made: what is copied from it was moved too."""
    place = tmp_path_factory.mktemp("stopped")
    shutil.copytree(data_root, place / "tree" / "data")
    runs = place / "tree" / "runs"
    output = echo(
        "train", "smoke", *SHORT, "name=exp", "run.stop_step=5", "--runs", runs, "--data", runs.parent / "data"
    )
    assert f"run.stop_step=5 is reached, `echo-lm train {runs / 'exp'}` goes on to the end" in output
    return (place / "tree").rename(place / "away")


@pytest.fixture
def stopped(tmp_path, put_away):
    """A run that stopped at step 5, in a tree with its data."""
    return shutil.copytree(put_away, tmp_path / "tree") / "runs" / "exp"


def test_a_renamed_run_goes_on_where_it_is(stopped, undisturbed):
    first = run_id(stopped)
    renamed = stopped.rename(stopped.parent / "exp monday")
    echo("train", renamed)
    assert losses(renamed) == undisturbed
    assert run_id(renamed) == first
    assert [path.name for path in stopped.parent.iterdir()] == ["exp monday"], "nothing was trained elsewhere"
    assert "# Run exp monday" in (renamed / "report.md").read_text()


def test_a_copy_goes_on_by_itself(stopped, undisturbed):
    branch = shutil.copytree(stopped, stopped.parent / "exp-branch")
    echo("train", branch)
    assert losses(branch) == undisturbed
    assert len(losses(stopped)) == 5
    assert run_id(branch) != run_id(stopped)
    assert RunFolder(branch).load_config().name == "exp-branch"
    with pytest.raises(UserError, match="name=other: .*exp-branch is a run already"):
        echo("train", branch, "name=other")


def test_a_moved_tree_and_a_moved_run_go_on(stopped, undisturbed, tmp_path):
    tree = stopped.parent.parent.rename(tmp_path / "elsewhere")
    moved = (tree / "runs" / "exp").rename(tmp_path / "alone")
    assert RunFolder(moved).data_file.is_file()
    with pytest.raises(UserError, match="--data"):
        echo("eval", moved, "--suite", "language")
    echo("train", moved, "--data", tree / "data")
    assert losses(moved) == undisturbed
    assert not (tmp_path / "data").exists(), "no dataset was made elsewhere"


def test_the_checkpoint_of_a_stop_is_evaluated(stopped):
    run = RunFolder(stopped)
    assert [job.step for job in missing_jobs(run, run.load_config(), ["language"])] == [4, 5]


def test_a_damaged_newest_checkpoint_is_set_aside(stopped, undisturbed):
    newest, _ = list(complete_checkpoints(stopped))[-1]
    weights = next(newest.glob("engine/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    echo("train", stopped)
    assert losses(stopped) == undisturbed
    events = read_events(stopped / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "start"] == [0, 4]
    assert any("set aside" in event.get("message", "") for event in events if event["kind"] == "warning")
    assert (newest.parent / ".damaged.step_00000005").is_dir()
    # Of a finished run it is trained again.
    newest, _ = list(complete_checkpoints(stopped))[-1]
    (newest / "complete.json").unlink()
    echo("train", stopped)
    assert RunFolder(stopped).finished()
    assert losses(stopped) == undisturbed
    assert [folder.name for folder, _ in complete_checkpoints(stopped)][-1] == "step_00000008"


def test_without_a_whole_checkpoint_it_is_refused_and_nothing_is_lost(stopped):
    for folder, _ in complete_checkpoints(stopped):
        next(folder.glob("engine/*.safetensors")).write_bytes(b"")
    before = sorted(path.name for path in (stopped / "checkpoints").iterdir())
    with pytest.raises(UserError, match="step_00000005 is damaged.*no older checkpoint is whole either"):
        echo("train", stopped)
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir()) == before


def test_every_start_says_what_trains(stopped, monkeypatch):
    monkeypatch.setenv("ECHO_LM_COMMIT", "feedbee-dirty")
    monkeypatch.setattr(
        "echo_lm.pipeline.launch.LaunchConfig", LaunchConfig
    )  # what is forked would not see the variable
    first = json.loads((stopped / "environment.json").read_text())
    echo("train", stopped)
    assert json.loads((stopped / "environment.json").read_text()) == first
    commit, dirty = first["git_commit"], " (with uncommitted changes)" if first["git_dirty"] else ""
    assert RunFiles(stopped).commits == [
        f"{commit}{dirty} for steps 1 to 5",
        "feedbee (with uncommitted changes) for steps 6 to 8",
    ]
    assert "for steps 6 to 8" in (stopped / "report.md").read_text()
