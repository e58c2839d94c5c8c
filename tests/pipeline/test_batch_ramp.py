"""A batch that grows: stages by hand, the order of the data, the same numbers as by amendments, resumed bit for bit."""

import shutil
from pathlib import Path

import pytest

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import write_json
from echo_lm.models.common.run_layout import EVENTS, checkpoint_name
from echo_lm.orchestration.evaluation.jobs import due_jobs
from echo_lm.orchestration.monitor.summary import due_steps
from echo_lm.pipeline.batches import loader_of_segments, make_loader, stages_of
from echo_lm.pipeline.config import RunConfig, load_config, save_config
from echo_lm.pipeline.run.amend import amend
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.goodput import Goodput
from echo_lm.pipeline.run.reader import RunReader
from echo_lm.pipeline.run.report import write_report
from echo_lm.pipeline.schedule import learning_rate_at, tokens_before
from tests.helpers.trainings import train_all

RAMP = "train.batch_ramp={start: 128, steps: 6}"
SHORT = [
    "train.steps=9",
    "train.schedule=constant",
    "train.warmup_tokens=1000",
    "run.workers=1",
    "run.checkpoint_every=2",
]


def test_sizes_and_tokens_by_hand(smoke):
    """Batches of 128 and 256 tokens have 2,000 tokens together: 8 and then 4 steps (1,024 tokens each), then 512."""
    train = smoke("train.batch_ramp={start: 128, tokens: 2000}", "train.steps=null", "train.tokens=5000").train
    assert train.batch_stages == ((0, 128), (8, 256), (12, 512))
    assert [train.tokens_before(step) for step in (0, 1, 8, 9, 12, 13)] == [0, 128, 1024, 1280, 2048, 2560]
    assert (train.steps, train.tokens_before(train.steps)) == (18, 5120), "5,000 tokens in whole batches"
    train = smoke(RAMP, "train.warmup_tokens=null", "train.warmup_steps=4", "train.learning_rate=1").train
    assert train.batch_stages == ((0, 128), (3, 256), (6, 512))
    assert train.warmup_tokens == 3 * 128 + 256
    assert [learning_rate_at(step, train) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    other = smoke("train.batch_tokens=1024").train
    assert tokens_before(10, [(0, train), (7, other)]) == 3 * 128 + 3 * 256 + 512 + 3 * 1024
    assert tokens_before(5, [(0, train), (7, other)]) == 3 * 128 + 2 * 256


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batch_ramp={start: 128}"], "batch_ramp: give one of tokens and steps"),
        (["train.batch_ramp={start: 192, steps: 4}"], "batch_tokens=512 is not 2, 4, 8 ... times batch_ramp.start=192"),
        (["train.batch_ramp={start: 512, steps: 4}"], "batch_tokens=512 is not 2, 4, 8 ... times"),
        (["train.batch_ramp={start: 32, steps: 8}"], "batch_ramp.start=32 is not a multiple of sequence_length=64"),
        (["train.batch_ramp={start: 128, steps: 1}"], "batch_ramp is too short for 2 sizes"),
        (["train.batch_ramp={start: 128, steps: 30}"], "reaches batch_tokens=512 at step 30, not before steps=30"),
        (["train.batch_ramp={start: 64, steps: 6}", "run.workers=2"], "a batch of 1 sequences does not divide among"),
        (["train.batch_ramp={begin: 64, steps: 6}"], "train.batch_ramp"),
    ],
)
def test_what_does_not_fit_is_one_line(smoke, overrides, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as raised:
        smoke("run.workers=1", *overrides)
    assert "\n" not in str(raised.value)


def test_recipes_without_a_ramp_keep_their_hashes(smoke):
    assert "batch_ramp" not in smoke().resolved()["train"]
    assert smoke(RAMP).identity() != smoke().identity()


def test_rows_come_in_one_order_whatever_the_batch(smoke, data_root):
    config, plain = smoke("mixture.recall=null", RAMP), smoke("mixture.recall=null")
    dataset = Dataset.open(data_root / config.data.name)
    stages = stages_of([(0, config)])
    assert [(stage.step, stage.config.train.batch_tokens) for stage in stages] == [(0, 128), (3, 256), (6, 512)]
    seen = []
    for number, stage in enumerate(stages):
        loader = loader_of_segments(dataset, [(part.step, part.config) for part in stages[: number + 1]])
        for step in range(stage.step, stages[number + 1].step if number < 2 else 8):
            seen += loader.batch(step).tokens.tolist()
    expected = [row for step in range(5) for row in make_loader(dataset, plain).batch(step).tokens.tolist()]
    assert seen == expected[: 3 * 2 + 3 * 4 + 2 * 8]


def test_an_amendment_begins_in_the_ramp(smoke):
    amended = stages_of([(0, smoke(RAMP)), (4, smoke("train.batch_tokens=1024"))])
    assert [(stage.step, stage.config.train.batch_tokens) for stage in amended] == [(0, 128), (3, 256), (4, 1024)]
    micro = stages_of([(0, smoke(RAMP, "run.workers=1", "run.microbatch_sequences=4"))])
    assert [stage.config.run.microbatch_sequences for stage in micro] == [2, 4, 4]


STOPS = ("1", "4", "6", "7", "null")
AMENDED = ((128, 3, 768), (256, 6, 1536), (512, 9, 3072))  # tokens of a batch, last step, tokens of a warmup of 6 steps


def config_of(name: str, begun: int = 0) -> RunConfig:
    """The configuration with which a run is started for the so manieth time."""
    if name == "amended":
        batch, last, warmup = AMENDED[begun]
        overrides = [f"train.batch_tokens={batch}", f"train.steps={last}", f"train.warmup_tokens={warmup}"]
    else:
        overrides = [RAMP, *([f"run.stop_step={STOPS[begun]}"] if name == "stopped" else [])]
    return load_config("smoke", [*SHORT, *overrides, f"name={name}"])


def start_again(folder: Path) -> None:
    """Change a run that has been trained before as it is to be changed."""
    run, begun = RunFolder(folder), sum(e["kind"] in ("stop", "finish") for e in read_events(folder / EVENTS))
    if folder.name == "amended" and begun:
        amend(run, config_of("amended", begun))
    elif folder.name == "stopped":
        save_config(config_of("stopped", begun), run.config_file)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_root):
    """`ramp`, 9 steps; `stopped`, the same, stopped in each size; `amended`, batches of the same sizes by amendments."""
    root = tmp_path_factory.mktemp("ramp")
    for name in ("ramp", "stopped", "amended"):
        RunFolder(root / name).prepare(config_of(name), data_root / config_of(name).data.name)
    train_all([root / name for name in ("ramp", *["stopped"] * 5, *["amended"] * 3)], before=start_again)
    return {name: RunFolder(root / name) for name in ("ramp", "stopped", "amended")}


def curve(run: RunFolder) -> dict[int, tuple[float, int, float]]:
    return {e["step"]: (e["loss"], e["tokens"], e["grad_norm"]) for e in steps(read_events(run.events_file))}


def test_a_ramp_is_a_run_whose_batch_was_amended(runs):
    ramp = curve(runs["ramp"])
    assert [tokens for _, tokens, _ in ramp.values()] == [128, 256, 384, 640, 896, 1152, 1664, 2176, 2688]
    assert ramp == curve(runs["amended"]), "bit for bit"
    assert runs["ramp"].finished()


def test_it_resumes_bit_for_bit_in_every_size(runs):
    assert curve(runs["stopped"]) == curve(runs["ramp"])
    starts = [e for e in read_events(runs["ramp"].events_file) if e["kind"] == "start"]
    assert [(e["step"], e["same_process"]) for e in starts] == [(0, False), (3, True), (6, True)]
    goodput = Goodput()
    goodput.add(read_events(runs["ramp"].events_file))
    assert goodput.lost == 0
    assert "Restarts" not in write_report(runs["ramp"].path).read_text()
    assert "Restarts" in write_report(runs["stopped"].path).read_text()


@pytest.mark.parametrize("name", ["ramp", "amended"])
def test_evaluations_every_so_many_tokens_follow_the_batch(runs, tmp_path, name):
    """Checkpoints of steps 2, 3, 4, 6, 8 and 9 have 256, 384, 640, 1152, 2176 and 2688 tokens."""
    shutil.copytree(runs[name].path, tmp_path / name)
    run = RunFolder(tmp_path / name)
    tokens = {step: count for step, (_, count, _) in curve(run).items()}
    shutil.rmtree(run.checkpoints)
    for step in (2, 3, 4, 6, 8, 9):
        write_json(run.checkpoints / checkpoint_name(step) / "complete.json", {"step": step, "tokens": tokens[step]})
    values = run.load_config()
    evaluation = values.evaluation.model_copy(update={"every_tokens": 600, "suites": ("language",)})
    config = values.model_copy(update={"evaluation": evaluation})
    assert [job.step for job in due_jobs(run, config)] == [4, 8, 9]
    assert due_steps(RunReader(run.path), config.resolved(), [2, 3, 4, 6, 8, 9], None) == {
        job.step for job in due_jobs(run, config)
    }
