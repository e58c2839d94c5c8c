"""Files that commit 94d8ee0 wrote open, resume and report under the code of today, with the same numbers.

The files lie in `tests/fixtures/written_by_94d8ee0`, with a README of what they are and how they were made. Each test works
on a copy.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from starlette.testclient import TestClient
from typer.testing import CliRunner

from . import entry_points

RUN, CHECKPOINT, STUDY, TEXT = Path("runs/tiny"), "step_00000008", Path("studies/tiny-study"), "tiny-text"
# In fit.json: what was measured and the estimates of the laws, not their intervals.
ESTIMATES = r"\.(study|loss|cells|huber_delta)$|laws\.\d+\.(B|beta)\.value|residuals.*\.fitted|\.(measured|naive)$|predicted\.value"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
EXPECTED = {path.stem: json.loads(path.read_text()) for path in (entry_points.FIXTURE / "expected").glob("*.json")}
# One thread, and the instructions that every x86 processor has: sums are then rounded in the same order on all of them.
SAME_ROUNDING = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A copy of the fixture, which is also the working directory, as relative paths in the files start there."""
    copy = tmp_path / "copy"
    shutil.copytree(entry_points.FIXTURE, copy)
    for heartbeat in copy.glob("runs/tiny/heartbeats/*"):
        os.utime(heartbeat, (0, 0))  # as new as the checkout, it would say that the run is training
    monkeypatch.chdir(copy)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where MLflow is not installed: its database takes seconds
    return copy


def echo_lm(*arguments: str) -> str:
    """Run a command in this process and return what it printed, on one line."""
    done = CliRunner().invoke(entry_points.command_line, arguments)
    assert done.exception is None, done.exception
    return " ".join(done.output.split())


def start(command: list[str], *arguments: str, **variables: str) -> str:
    """Run a command in a new process and return what it printed."""
    environment = os.environ | variables
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def events() -> list[dict[str, Any]]:
    """What the run's log holds, read without the code under test."""
    return [json.loads(line) for line in (RUN / "events.jsonl").read_text().splitlines()]


def last_event(kind: str) -> dict[str, Any]:
    """The newest event of a kind."""
    return [event for event in events() if event["kind"] == kind][-1]


def numbers(path: Path) -> list[str]:
    """All numbers in a page, in order: wording may change, they may not."""
    return NUMBER.findall(path.read_text())


def contents(folder: Path, pattern: str) -> dict[Path, bytes]:
    """The bytes of each file that fits a pattern."""
    return {path: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


def text_of(response: Any) -> str:
    """The words of a web page, each apart by one space."""
    assert response.status_code == 200, response.text
    return " ".join(re.sub(r"<[^>]+>", " ", response.text).split())


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The numbers, texts and nulls in nested JSON values, by their dotted path."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, item in items for name, leaf in leaves(item, f"{path}.{key}").items()}


def moved_away(page: Path) -> Path:
    """Move a page away, so that a page in its place was written anew, and return where the old one is."""
    return page.rename(page.with_suffix(".old"))


def test_the_dataset_verifies_and_is_recognised_as_complete(folder):
    before = contents(folder, "data/tiny-text/*")
    said = echo_lm("prepare", "recipe.yaml", "--verify")
    assert "2 shards and the tokenizer match the manifest; splits are disjoint" in said
    assert "dataset is complete; nothing to do" in echo_lm("prepare", "recipe.yaml", "--no-ray")
    assert contents(folder, "data/tiny-text/*") == before


def test_the_run_shows_the_same_state_and_the_same_report(folder):
    row, last = echo_lm("status", str(RUN)).split("nodes", 1)[1], last_event("step")
    speed = f"{last['tokens_per_second']:,.0f}"
    name, state, step, loss, tokens, mfu, goodput, eta, checkpoint, *_ = row.replace("begins from", "").split()
    assert (name, state, step, loss, tokens) == ("tiny", "stopped", "8/12", f"{last['loss']:.3f}", speed)
    assert (mfu, eta, checkpoint) == ("-", "-", "8")
    assert goodput.endswith("%")
    assert "2/2" in row
    old = moved_away(RUN / "report.md")
    entry_points.write_run_report(RUN)
    page = (RUN / "report.md").read_text()
    (goodput_line,) = (line for line in page.splitlines() if "of it productive" in line)  # reports of then had none
    (RUN / "report.md").write_text(page.replace(goodput_line, ""))
    assert numbers(RUN / "report.md") == numbers(old)


def test_the_heartbeat_of_a_process_of_the_old_version_is_read(folder):
    """As when the code is updated while a run trains: its newest sign of life says that it is alive, and where."""
    os.utime(RUN / "heartbeats" / "rank_00000.json")
    row = echo_lm("status", str(RUN)).split("nodes", 1)[1].split()
    assert (row[1], row[-1]) == ("running", "node-a")


def test_the_run_resumes_from_its_checkpoint_with_the_same_losses_and_weights(folder):
    """The steps after the checkpoint pay for open write gates (`train.write_cost`), so a key that is not read changes them."""
    expected = EXPECTED["resumed"]
    how = ("run.stop_step=null", "run.device=cpu", "run.max_restarts=0")
    start(entry_points.COMMAND_LINE, "train", str(RUN), *how, **SAME_ROUNDING)
    assert [event["step"] for event in events() if event["kind"] == "start"] == [0, 8]
    keys = ("step", "loss", "loss_text", "loss_recall", "grad_norm")
    found = [{key: event[key] for key in keys} for event in events() if event["kind"] == "step" and event["step"] > 8]
    wanted = [{key: step[key] for key in keys} for step in expected["steps"]]
    assert (RUN / "finished.json").is_file()
    # Another release of torch may round otherwise, and in spite of SAME_ROUNDING so does the processor of another maker.
    if torch.__version__ != expected["torch"] or expected["processor"] not in Path("/proc/cpuinfo").read_text():
        for step, as_before in zip(found, wanted, strict=True):
            assert step == pytest.approx(as_before, rel=1e-4)
        return
    assert found == wanted
    weights = load_file(RUN / "checkpoints" / "step_00000012" / "model" / "model.safetensors")
    sha256 = hashlib.sha256()
    for name in sorted(weights):
        sha256.update(name.encode() + weights[name].numpy().tobytes())
    assert sha256.hexdigest() == expected["weights_sha256"]


def test_the_model_gives_the_same_logits(folder):
    expected = EXPECTED["logits"]
    found = entry_points.logits_of(RUN / "checkpoints" / CHECKPOINT / "model", expected["tokens"])
    wanted = torch.tensor(expected["logits"])
    torch.testing.assert_close(found[:, :: expected["every"]], wanted, rtol=1e-5, atol=1e-6)


def test_evaluations_are_recognised_as_done_and_the_summary_is_the_same(folder):
    """Results hold the time of their measurement: one that was computed again would have other bytes."""
    before = contents(folder, "runs/tiny/evals/*/*.json")
    old = moved_away(RUN / "evals" / "summary.md")
    echo_lm("eval", str(RUN))
    assert len(before) == 2
    assert contents(folder, "runs/tiny/evals/*/*.json") == before
    assert numbers(RUN / "evals" / "summary.md") == numbers(old)


def test_the_study_is_recognised_as_done_and_gives_the_same_estimates_and_cells(folder):
    """`study run` would train every cell anew whose record it does not know, or refuse it as one of another configuration.

    Intervals and remarks are of the present version; what was measured and the estimates of the laws stay.
    """
    before = contents(folder, "studies/tiny-study/runs/**/*")
    old_fit, old_report = moved_away(STUDY / "fit.json"), moved_away(STUDY / "report.md")
    echo_lm("study", "run", "study.yaml")
    assert len(before) == 8
    assert contents(folder, "studies/tiny-study/runs/**/*") == before
    found, wanted = (leaves(entry_points.read(path)) for path in (STUDY / "fit.json", old_fit))
    kept = {name: value for name, value in wanted.items() if re.search(ESTIMATES, name)}
    assert len(kept) > 8
    for name, value in kept.items():
        assert found[name] == (pytest.approx(value, rel=1e-2) if isinstance(value, float) else value), name
    now, then = (path.read_text() for path in (STUDY / "report.md", old_report))
    rows = [line for line in then.splitlines() if re.match(r"\| echo-\S+ \| [\d,]+ \|", line)]
    assert len(rows) == 8, "the table of cells"
    assert set(rows) <= set(now.splitlines())
    assert "8 done, 0 running, 0 waiting, 0 failed" in echo_lm("study", "status", str(STUDY))


def test_the_dashboard_shows_the_run_and_the_study(folder):
    """The page of a run has its loss, the health of its SKA layer and its evaluations; that of a study every cell's loss."""
    pages = TestClient(entry_points.dashboard(Path("runs"), Path("studies"), ["testserver"]))
    run, study = (text_of(pages.get(f"/{path.as_posix()}")) for path in (RUN, STUDY))
    (layer,) = last_event("health")["layers"]
    columns = ("layer", "smallest_eigenvalue", "sigma_max", "mean_gate", "closed_gates", "written_share")
    assert " ".join(f"{layer[column]:.3g}" for column in columns) in run
    assert f"stopped echo-1m on {TEXT}" in run
    assert f"Loss {last_event('step')['loss']:.3f}" in run
    assert "Evaluations 2 / 2 all done" in run
    for row in entry_points.read(RUN / "evals" / CHECKPOINT / "tiny-suite.json")["rows"]:
        assert f"{row['label']} {row['pairs']} {row['length']} {row['queries']} {row['accuracy']:.1%}" in run
    for record in STUDY.glob("runs/*/cell.json"):
        cell = entry_points.read(record)
        assert re.search(rf"{re.escape(cell['cell']['name'])} done .*?{cell['loss']:.4f}", study)


def test_the_published_study_can_be_imported_and_its_cells_keep_their_identity(tmp_path):
    """The one large study of `docs/results`, in the form in which studies are sent."""
    cells = entry_points.imported_study(entry_points.PUBLISHED_STUDY, tmp_path / "study-code-h100")
    assert len(cells) == 91
    assert [(name, computed) for name, _, computed in cells] == [(name, stored) for name, stored, _ in cells]


def test_the_recall_sweep_is_recognised_as_done_and_reports_the_same_numbers(folder):
    before = contents(folder, "recall/*.json")
    said = start(entry_points.RECALL_SWEEP, "recall/tiny-recall.yaml", "--sweeps", "recall", "--device", "cpu")
    assert "0 runs to do, 8 there" in said
    assert contents(folder, "recall/*.json") == before
    start(entry_points.RECALL_REPORT, "recall/tiny-recall.yaml", "--sweeps", "recall")
    found, wanted = (
        entry_points.read(place / "tiny-recall.json") for place in (Path("recall/tiny-recall"), Path("recall/report"))
    )
    for part in ("runs", "mean_of", "chance", "ceiling", "rows"):
        assert found[part] == wanted[part]
    for arm, described in wanted["arms"].items():
        for key in ("parameters", "learning_rate", "mean_by_rate_and_seed", "missing", "diverged"):
            assert found["arms"][arm][key] == described[key]
    sweeps = [
        [line for line in path.read_text().splitlines() if line.startswith("|")]
        for path in (Path("recall/tiny-recall/tiny-recall.md"), Path("recall/report/tiny-recall.md"))
    ]
    assert list(map(NUMBER.findall, sweeps[0])) == list(map(NUMBER.findall, sweeps[1]))


@pytest.mark.parametrize("kind", entry_points.HASHES)
def test_hashes_are_unchanged(folder, kind):
    """By these hashes datasets, runs, studies, suites and recall runs of earlier versions are recognised."""
    expected = EXPECTED["identities"][kind]
    assert set(entry_points.PACKAGED[kind]()) & set(expected), "nothing that comes with the package would be compared"
    assert {name: entry_points.HASHES[kind](name) for name in expected} == expected


@pytest.mark.parametrize("path", sorted(entry_points.RECALL_ROWS.glob("*.json")), ids=lambda path: path.stem)
def test_published_recall_rows_belong_to_runs_of_their_sweep(path):
    """The raw rows behind `docs/results` were measured under ids that the sweeps of today still have."""
    stored = {run["id"] for run in entry_points.read(path)["runs"]}
    assert stored <= entry_points.recall_run_ids(entry_points.RECALL_SWEEPS / f"{path.name.split('.')[0]}.yaml")
