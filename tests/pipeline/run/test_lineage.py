"""Branches, warm starts and amendments: bit for bit the run that they continue, recorded by content."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from echo_lm.models.common.errors import UserError
from echo_lm.models.common.run_layout import checkpoint_name
from echo_lm.orchestration.monitor.status import Status
from echo_lm.pipeline.checkpoint.average import average_run
from echo_lm.pipeline.checkpoint.format import latest_checkpoint
from echo_lm.pipeline.checkpoint.restore import newest_state
from echo_lm.pipeline.config import RunConfig, load_config, parse_config
from echo_lm.pipeline.run.amend import amend
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.lineage import read_lineage, segments_of
from echo_lm.pipeline.run.reader import RunFiles
from echo_lm.pipeline.run.report import write_report
from echo_lm.pipeline.run.start import branch_config
from tests.helpers.trainings import train_all

TRUNK = [
    "train.steps=8",
    "train.schedule=constant",
    "train.warmup_tokens=1024",
    "run.checkpoint_every=2",
    "run.workers=1",
]
COOLDOWN = {"schedule": "warmup-stable-decay", "decay_steps": 4, "decay_shape": "1-sqrt"}


def curve(run: RunFolder) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in steps(read_events(run.events_file))}


def final(run: RunFolder, part: str = "engine/rank_00000") -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(run) / f"{part}.safetensors")


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_root):
    """`trunk`, 8 steps at a constant rate, and `whole`, the same steps with a cooldown in the last 4; then runs made from them."""
    root = tmp_path_factory.mktemp("lineage")

    def make(name: str, config: RunConfig) -> RunFolder:
        run = RunFolder(root / name)
        run.prepare(config, data_root / config.data.name)
        return run

    def branch(name: str, step: int | None, what: str, run: str = "trunk", **train) -> RunFolder:
        values = branch_config(RunFolder(root / run), step, what) | {"name": name}
        values["train"] |= train
        return make(name, parse_config(values, name))

    found = {"trunk": make("trunk", load_config("smoke", [*TRUNK, "name=trunk"]))}
    whole = [f"train.{key}={value}" for key, value in COOLDOWN.items()]
    found["whole"] = make("whole", load_config("smoke", [*TRUNK, *whole, "name=whole"]))
    train_all([run.path for run in found.values()])

    found["unchanged"] = branch("unchanged", 4, "everything")
    found["cooled"] = branch("cooled", 4, "everything", **COOLDOWN)
    found["weights"] = branch("weights", 8, "weights", steps=2)
    found["optimizer"] = branch("optimizer", 8, "optimizer", steps=2)
    values = branch_config(RunFolder(root / "trunk"), 8, "weights") | {"name": "folder"}
    values["start_from"] = {"weights": str(latest_checkpoint(found["trunk"]) / "model")}
    values["train"] |= {"steps": 2}
    found["folder"] = make("folder", parse_config(values, "folder"))

    # Amended twice: longer, then another batch, mixture, length and rate.
    shutil.copytree(found["trunk"].path, root / "amended")
    found["amended"] = amended = RunFolder(root / "amended")
    change(amended, steps=12)
    train_all([found[name].path for name in list(found)[2:]])
    change(amended, steps=16, batch_tokens=1024, sequence_length=512, learning_rate=1e-3)
    shutil.copytree(amended.path, root / "fallen")
    found["fallen"] = fallen = RunFolder(root / "fallen")
    for step in (8, 10, 12):
        (fallen.checkpoints / checkpoint_name(step) / "engine" / "state.json").write_text("{}")
    found["resumed"] = RunFolder(root / "resumed")
    train_all([amended.path, fallen.path, found["resumed"].path], before=without_last_checkpoint)
    return found


def without_last_checkpoint(folder: Path) -> None:
    """Make `resumed` from the finished `amended`, as if it had been killed before its last checkpoint."""
    if folder.name == "resumed":
        shutil.copytree(folder.with_name("amended"), folder)
        shutil.rmtree(folder / "checkpoints" / checkpoint_name(16))


def change(run: RunFolder, **train) -> tuple[int, dict]:
    values = run.load_config().resolved()
    values["train"] |= train
    return amend(run, parse_config(values, "amended"))


def test_a_branch_with_nothing_changed_goes_on_bit_for_bit(runs):
    trunk, branch = runs["trunk"], runs["unchanged"]
    assert curve(branch) == {step: loss for step, loss in curve(trunk).items() if step > 4}
    assert equal(final(branch), final(trunk)), "weights and moments"
    assert steps(read_events(branch.events_file))[0]["tokens"] == 5 * 512, "tokens go on too"


def test_a_cooldown_branch_is_the_cooldown_trained_in_one_run(runs):
    trunk, branch, whole = (curve(runs[name]) for name in ("trunk", "cooled", "whole"))
    assert whole == {step: loss for step, loss in trunk.items() if step <= 4} | branch
    assert equal(final(runs["cooled"]), final(runs["whole"]))
    assert trunk[8] != whole[8]


def test_weights_and_optimizer_begin_at_step_0(runs):
    trunk = runs["trunk"]
    by_weights, by_optimizer = (curve(runs[name]) for name in ("weights", "optimizer"))
    assert list(by_weights) == list(by_optimizer) == [1, 2]
    assert by_weights[1] == by_optimizer[1] < curve(trunk)[1], "the trained weights on the first batch"
    assert not equal(final(runs["weights"]), final(runs["optimizer"])), "moments were taken by one of them"
    assert curve(runs["folder"]) == by_weights, "a folder of weights is as good"


def test_the_child_names_its_parent_by_content(runs):
    parent = read_lineage(runs["cooled"].path).parent
    assert (parent.run, parent.step, parent.tokens, parent.what) == ("trunk", 4, 2048, "everything")
    same = read_lineage(runs["unchanged"].path).parent
    assert parent.content == same.content
    weights, folder = (read_lineage(runs[name].path).parent for name in ("weights", "folder"))
    assert weights.content == folder.content != parent.content, "the same files, whoever named them"
    assert [segment.step for segment in read_lineage(runs["cooled"].path).segments] == [0, 4]
    assert len(read_lineage(runs["unchanged"].path).segments) == 1, "nothing changed: one segment"


def test_a_finished_run_goes_on_with_what_was_amended(runs):
    trunk, amended = curve(runs["trunk"]), runs["amended"]
    assert {step: loss for step, loss in curve(amended).items() if step <= 8} == trunk
    assert list(curve(amended)) == list(range(1, 17))
    assert amended.finished()
    events = [event for event in read_events(amended.events_file) if event["kind"] == "amend"]
    assert [event["step"] for event in events] == [8, 12]
    assert events[0]["changes"] == {"train.steps": [8, 12]}
    assert events[1]["changes"]["train.sequence_length"] == [64, 512]
    tokens = {event["step"]: event["tokens"] for event in steps(read_events(amended.events_file))}
    assert tokens[12] == 12 * 512
    assert tokens[16] == 12 * 512 + 4 * 1024
    assert [segment.step for segment in segments_of(amended.path, amended.load_config())] == [0, 8, 12]


def test_falling_back_behind_an_amendment_repeats_the_old_steps_as_they_were(runs):
    fallen = runs["fallen"]
    starts = [event["step"] for event in read_events(fallen.events_file) if event["kind"] == "start"]
    assert starts[-3:] == [6, 8, 12], "one engine for each segment"
    assert curve(fallen) == curve(runs["amended"])
    assert equal(final(fallen), final(runs["amended"]))


def test_a_run_needs_its_parent_no_more_once_it_is_set_up(runs, tmp_path, data_root):
    """Parent and child moved apart, before the child has a checkpoint of its own."""
    shutil.copytree(runs["trunk"].path, tmp_path / "a" / "trunk")
    values = branch_config(RunFolder(tmp_path / "a" / "trunk"), None, "everything") | {"name": "child"}
    values["train"] |= {"steps": 9}
    config = parse_config(values, "child")
    child = RunFolder(tmp_path / "b" / "child")
    child.prepare(config, data_root / config.data.name)
    shutil.rmtree(tmp_path / "a")
    state = newest_state(child)
    assert (state.step, state.tokens, state.checkpoint) == (8, 8 * 512, child.start)
    child.check(child.load_config())


def test_a_parent_that_moved_is_found_by_content_and_one_that_changed_is_refused(runs, tmp_path, data_root):
    shutil.copytree(runs["trunk"].path, tmp_path / "trunk")
    values = branch_config(RunFolder(tmp_path / "trunk"), 8, "everything") | {"name": "child"}
    values["train"] |= {"steps": 9}
    config = parse_config(values, "child")
    (tmp_path / "trunk").rename(tmp_path / "renamed")
    RunFolder(tmp_path / "child").prepare(config, data_root / config.data.name)
    assert read_lineage(tmp_path / "child").parent.path == str(tmp_path / "renamed")

    again = parse_config(values | {"name": "again"}, "again")
    complete = tmp_path / "renamed" / "checkpoints" / "step_00000008" / "complete.json"
    record = json.loads(complete.read_text())
    record["sha256"]["model/config.json"] = 64 * "0"
    complete.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"trunk is not there any more \(\w{12}\), nor does a run beside it"):
        RunFolder(tmp_path / "again").check(again)


def test_a_run_with_longer_contexts_resumes_bit_for_bit(runs):
    """From step 14, two steps after its contexts grew from 64 to 512 tokens."""
    resumed, amended = runs["resumed"], runs["amended"]
    starts = [event["step"] for event in read_events(resumed.events_file) if event["kind"] == "start"]
    assert starts == [*(event["step"] for event in read_events(amended.events_file) if event["kind"] == "start"), 14]
    assert curve(resumed) == curve(amended)
    assert equal(final(resumed), final(amended))


def test_an_amendment_torn_by_a_crash_does_not_count(runs, tmp_path):
    shutil.copytree(runs["trunk"].path, tmp_path / "torn")
    torn = RunFolder(tmp_path / "torn")
    before = torn.config_file.read_text()
    change(torn, steps=12)
    torn.config_file.write_text(before)  # written last
    assert [segment.step for segment in segments_of(torn.path, torn.load_config())] == [0]
    change(torn, steps=14)
    segments = segments_of(torn.path, torn.load_config())
    assert [(segment.step, segment.config["train"]["steps"]) for segment in segments] == [(0, 8), (8, 14)]


def test_the_report_names_the_parent_the_branches_and_what_changed(runs):
    report = write_report(runs["cooled"].path).read_text()
    parent = read_lineage(runs["cooled"].path).parent
    assert f"| begins from | trunk at step 4 (everything, content {parent.content[:12]}) |" in report
    assert "from step 4 on train.schedule constant -> warmup-stable-decay, " in report
    assert [event["step"] for event in RunFiles(runs["cooled"].path).earlier_steps] == [1, 2, 3, 4], "curves join"
    assert RunFiles(runs["weights"].path).earlier_steps == []
    assert "from step 8 on train.steps 8 -> 12; from step 12 on " in write_report(runs["amended"].path).read_text()
    trunk = write_report(runs["trunk"].path).read_text()
    assert "begins from" not in trunk
    branches = "cooled from step 4 (everything), unchanged from step 4 (everything), optimizer from step 8 (optimizer), weights"
    assert f"| branches | {branches} from step 8 (weights) |" in trunk, (
        "not the copies that were amended, nor the folder of weights"
    )


def test_status_names_the_parent(runs):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(Status().table([runs["trunk"], runs["cooled"], runs["folder"]]))
    lines = console.export_text().splitlines()
    assert "begins from" in lines[0]
    assert [line.split()[-1] for line in lines[2:4]] == ["trunk@4", "model"]


def test_the_identity_of_a_run_is_the_list_of_its_segments(runs):
    lineages = {name: read_lineage(run.path) for name, run in runs.items()}
    assert lineages["trunk"] is None
    assert lineages["amended"].identity() == lineages["fallen"].identity() != lineages["cooled"].identity()
    first, second, third = lineages["amended"].segments
    again = lineages["amended"].model_copy(update={"segments": (first, second, second, third)})
    assert again.identity() == lineages["amended"].identity(), "amended before a step was trained"
    assert lineages["cooled"].root is None, "the trunk began with fresh weights"
    assert lineages["weights"].identity() == lineages["folder"].identity() != lineages["optimizer"].identity()


def test_an_average_is_the_mean_and_a_run_of_its_own(runs, tmp_path):
    shutil.copytree(runs["trunk"].path, tmp_path / "trunk")
    trunk = RunFolder(tmp_path / "trunk")
    average = average_run(trunk, 2)
    assert average.path == tmp_path / "trunk-average-2"
    six, eight = (load_file(trunk.checkpoints / checkpoint_name(step) / "model/model.safetensors") for step in (6, 8))
    mean = final(average, "model/model")
    assert mean.keys() == six.keys()
    assert all(torch.allclose(mean[name], (six[name] + eight[name]) / 2, rtol=1e-6, atol=0) for name in mean)
    assert not equal(mean, eight)
    assert average.finished()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert average.data_folder() == trunk.data_folder()
    parent = read_lineage(average.path).parent
    assert str(parent) == f"trunk, average of steps 6, 8 (content {parent.content[:12]})"
    values = branch_config(average, None, "weights") | {"name": "on"}
    RunFolder(tmp_path / "on").check(parse_config(values, "on"))
    with pytest.raises(UserError, match="holds weights only"):
        RunFolder(tmp_path / "on").check(parse_config(branch_config(average, None, "everything"), "on"))
    with pytest.raises(UserError, match="is an average of weights: begin a run from it"):
        change(average, steps=12)
    with pytest.raises(UserError, match="trunk-average-2 exists already"):
        average_run(trunk, 2)
    with pytest.raises(UserError, match="--last 1: an average needs two checkpoints or more"):
        average_run(trunk, 1)
    with pytest.raises(
        UserError, match="--last 5: .* has fewer complete checkpoints with weights, of steps 2, 4, 6, 8"
    ):
        average_run(trunk, 5)


def bad(runs, tmp_path: Path, message: str, *, step: int = 4, what: str = "everything", **values) -> None:
    config = branch_config(runs["trunk"], step, what) | {"name": "bad"}
    for key, value in values.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message) as caught:
        RunFolder(tmp_path / "bad").check(parse_config(config, "bad"))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_branched_is_one_line(runs, tmp_path):
    bad(runs, tmp_path, "its d_model is 32, the run's is 64", model={"d_model": 64})
    bad(runs, tmp_path, "no complete checkpoint of step 5: it has 2, 4, 6, 8", start_from={"step": 5, "content": None})
    bad(
        runs,
        tmp_path,
        "nowhere holds no run: name a folder with a config.yaml",
        start_from={"run": str(tmp_path / "nowhere"), "content": None},
    )
    bad(runs, tmp_path, "train.steps=8 does not lie after step 8", step=8)
    cooldown = {"schedule": "warmup-stable-decay", "decay_steps": 3, "steps": 10}
    bad(runs, tmp_path, "cooldown of 3 steps does not fit into the 2 that are left", step=8, train=cooldown)
    bad(
        runs,
        tmp_path,
        "holds no model.safetensors",
        start_from={"run": None, "weights": str(tmp_path), "what": "weights", "step": "latest"},
    )
    weights = tmp_path / "weights"
    shutil.copytree(latest_checkpoint(runs["trunk"]) / "model", weights)
    folder = {"run": None, "weights": str(weights), "what": "weights", "step": "latest", "content": None}
    bad(runs, tmp_path, "its d_model is 32, the run's is 64", start_from=folder, model={"d_model": 64})
    bad(runs, tmp_path, "weights has changed: its content is", start_from=folder | {"content": 64 * "0"})
    whole = (weights / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(whole[:-1000])
    bad(runs, tmp_path, "model.safetensors is damaged or cut off", start_from=folder)
    shutil.copytree(runs["trunk"].path, tmp_path / "retained")
    shutil.rmtree(tmp_path / "retained" / "checkpoints" / "step_00000004" / "engine")
    bad(runs, tmp_path, "holds weights only", start_from={"run": str(tmp_path / "retained")})


def test_what_cannot_be_amended_is_one_line(runs, tmp_path):
    run = runs["trunk"]
    with pytest.raises(UserError, match="train.steps=8 does not lie after step 8"):
        change(run, learning_rate=1.0)
    with pytest.raises(UserError, match="a cooldown of 4 steps does not fit into the 2 that are left after step 8"):
        change(run, steps=10, **COOLDOWN)
    values = run.load_config().resolved()
    values["model"] |= {"d_model": 64}
    with pytest.raises(UserError, match="model.d_model of .* cannot change on the way"):
        amend(run, parse_config(values, "amended"))
    values = run.load_config().resolved()
    values["mixture"] |= {"text_weights": {"nobody": 1.0}}
    values["train"] |= {"steps": 9}
    with pytest.raises(UserError, match="has no source 'nobody'"):
        amend(run, parse_config(values, "amended"))
    assert read_lineage(run.path) is None
    assert run.finished()
