"""The report says what the files say, at any moment of a run, and always in the same bytes."""

import math
import re
from pathlib import Path

import pytest
import yaml

from echo_lm.evals.scores import accuracy
from echo_lm.models import build_model, count_parameters, preset, save_pretrained
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import write_json
from echo_lm.models.common.run_layout import SUPERVISION
from echo_lm.pipeline.run.events import EventLog
from echo_lm.pipeline.run.report import write_report

START = 1_700_000_000.0
CONFIG = preset("echo-1m", vocab_size=500)
MOST_BYTES = 150_000


def write_steps(log: EventLog, first: int, last: int, *, late: float = 0) -> None:
    for step in range(first, last + 1):
        log.write(
            "step",
            time=START + step + late,
            step=step,
            loss=4 / step + 1,
            loss_text=5 / step + 1,
            loss_recall=3 / step + 1,
            tokens=step * 1024,
            tokens_per_second=1000 + 7 * math.sin(step),
            data_stall_seconds=0.01,
            epochs={"words": step / 40, "code": step / 600},
            loss_by_source={"words": 2.0 + step} | ({"code": 7.0} if step < 50 else {}),
        )


def write_checkpoint(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step_{step:08d}"
    save_pretrained(build_model(CONFIG), folder / "model")
    write_json(folder / "complete.json", {"step": step, "tokens": step * 1024})


def write_evaluation(run: Path, step: int, correct: int, *, started: float) -> None:
    folder = run / "evals" / f"step_{step:08d}"
    common = {"step": step, "tokens": step * 1024, "started": START + started, "ended": START + started + 5}
    rows = [
        {"task": task, "label": f"{task}-4", "pairs": 4, "length": length, "open_accuracy": correct / 1000}
        | accuracy(correct, 1000, chance=1 / 32)
        for task in ("niah", "sysprompt")
        for length in (64, 256, 1024)
    ]
    write_json(folder / "recall-quick.json", common | {"suite": "recall-quick", "rows": rows, "metrics": {}})
    values = {"bits_per_byte": 2.0, "perplexity": 90.0, "unigram_bits_per_byte": 3.2, "gzip_bits_per_byte": 2.9}
    values |= {"tokens": 5000, "bytes": 15000, "documents": 40}
    metrics = {f"language/{name}": value for name, value in values.items()}
    write_json(folder / "language.json", common | {"suite": "language", "rows": [], "metrics": metrics})


@pytest.fixture
def run(tmp_path) -> Path:
    """60 steps with a crash after 30 that repeats 21 to 30; checkpoints at 20, 40 and 60, all evaluated."""
    run = tmp_path / "runs" / "small"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "words"}, "model": {"preset": "echo-1m"}}))
    write_json(
        run / "environment.json",
        {"git_commit": "abc123", "git_dirty": True, "hardware": "2 CPU cores", "versions": {"torch": "2.13.0"}},
    )
    with EventLog(run / "events.jsonl") as log:
        log.write("start", time=START, step=0, world_size=2)
        write_steps(log, 1, 30)
        log.write("start", time=START + 100, step=20, world_size=2)
        write_steps(log, 21, 45, late=100)
        log.write("skip", time=START + 145.5, step=46, reason="loss is not finite")
        write_steps(log, 47, 60, late=100)
        log.write("finish", time=START + 161, step=60, tokens=61440)
    with EventLog(run / SUPERVISION) as log:
        log.write("attempt", time=START - 20, number=1, reason="start", pid=1)
        log.write("lost", time=START + 60, what="worker", name="here", message="rank 0 on here died")
        log.write("evaluation", time=START + 167, step=60, suite="language", node="here", seconds=5)
    for step, correct, started in ((20, 100, 21.5), (40, 500, 141.5), (60, 950, 162)):
        write_checkpoint(run, step)
        write_evaluation(run, step, correct, started=started)
    return run


def test_the_report_says_what_the_files_say(run):
    report = write_report(run).read_text()
    assert "Finished at step 60" in report
    assert "61,440 in 60 steps" in report
    count = count_parameters(CONFIG)
    assert f"{count.total:,} ({count.non_embedding:,} without embeddings)" in report
    for fact in ("abc123 (with uncommitted changes)", "words", "2 processes, 2 CPU cores", "torch 2.13.0", "echo-1m"):
        assert fact in report
    # 30 steps before the crash, 61 seconds after it; the time between is no training, nor is the evaluation at the end.
    assert "1 min 31 s" in report


def test_recall_of_the_last_checkpoint_with_intervals(run):
    report = write_report(run).read_text()
    score = accuracy(950, 1000, chance=1 / 32)
    row = f"| sysprompt-4 | 4 | 1,024 | 1,000 | **95.0%** | {score['low']:.1%} to {score['high']:.1%} | 95.0% | 3.1% |"
    assert row in report
    assert "Recall at step 60" in report
    assert "50.0%" not in report


def test_language_beside_its_baselines(run):
    report = write_report(run).read_text()
    assert "| model | **2.000** | -37.5% |" in report
    assert "| unigram over tokens | 3.200 |" in report
    assert "| gzip -9 | 2.900 | -9.4% |" in report


def test_the_timeline_shows_which_evaluations_ran_beside_the_training(run):
    report = write_report(run).read_text()
    assert "2 of 3 evaluated checkpoints were evaluated while training went on" in report
    assert "| recall-quick | 20 | 22 s | 26 s | 5 |" in report
    assert "| recall-quick | 60 | 162 s | 167 s | after training |" in report


def test_sources_have_their_losses_and_epochs(run):
    """Words had steps 41 to 60 but for 46, which was skipped; code was last in step 49."""
    report = write_report(run).read_text()
    words = 2 + (sum(range(40, 61)) - 46) / 20
    assert f"| words | {words:.4f} | 1.50 |\n| code | 7.0000 | 0.10 |" in report


def test_restarts_and_skipped_steps_are_told(run):
    report = write_report(run).read_text()
    assert "| 100 s | 30 | 20 |" in report
    assert "Skipped steps (loss or gradient not finite): 1." in report


def test_the_figures_are_there_small_and_linked(run):
    report = write_report(run).read_text()
    linked = set(re.findall(r"\]\((figures/\w+\.png)\)", report))
    names = {"loss", "tokens_per_second", "recall_by_length", "bits_per_byte", "state_bytes"}
    assert linked == {f"figures/{name}.png" for name in names}
    for path in linked:
        data = (run / path).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert 5_000 < len(data) < MOST_BYTES, path


def test_writing_it_twice_gives_the_same_bytes(run):
    def contents() -> dict[str, bytes]:
        write_report(run)
        return {path.name: path.read_bytes() for path in [run / "report.md", *run.glob("figures/*")]}

    assert contents() == contents()


def test_a_crashed_run_has_a_report_that_says_so(run):
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(lines[:40]) + lines[40][:20])
    report = write_report(run).read_text()
    assert "**Unfinished**: the last step on record is 30" in report


def test_a_run_that_has_hardly_begun_has_a_report_too(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {name: words}\n")
    report = write_report(tmp_path).read_text()
    assert "**Unfinished**" in report
    assert "No step is on record yet" in report
    with EventLog(tmp_path / "events.jsonl") as log:
        log.write("start", step=0, world_size=1)
        log.write("step", step=1, tokens=8, loss=math.nan, tokens_per_second=9.0)
    assert "The last step has no finite loss" in write_report(tmp_path).read_text()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.yaml"):
        write_report(tmp_path)
