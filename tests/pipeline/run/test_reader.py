"""A run folder that is read again and again while it is written, damaged and removed."""

import json
import shutil

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import write_json
from echo_lm.pipeline.run.events import EventLog
from echo_lm.pipeline.run.folder import RunFolder
from echo_lm.pipeline.run.reader import RunFiles, RunReader
from echo_lm.pipeline.run.supervision import record_event


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints, two results and one evaluation that was given up."""
    run = RunFolder(tmp_path / "runs" / "one")
    run.path.mkdir(parents=True)
    run.config_file.write_text("name: one\ntrain: {steps: 20}\n")
    write_json(run.environment_file, {"run_id": "abc"})
    for step in (20, 10):
        write_json(run.checkpoints / f"step_{step:08d}" / "complete.json", {"step": step, "tokens": step * 512})
        result = {"suite": "language", "step": step, "metrics": {"language/bits_per_byte": 2.0}, "started": step}
        write_json(run.evals / f"step_{step:08d}" / "language.json", result)
    with EventLog(run.events_file) as log:
        log.write("start", time=1.0, step=0)
        log.write("step", time=2.0, step=1)
    record_event(run, "evaluation_failed", step=10, suite="recall", message="no memory")
    return run


def test_a_report_and_a_watcher_read_the_same(run):
    files, reader = RunFiles(run.path), RunReader(run.path)
    assert reader.config() == files.config == {"name": "one", "train": {"steps": 20}}
    assert reader.environment() == files.environment == {"run_id": "abc"}
    assert [step for step, _ in reader.complete_steps()] == [record["step"] for _, record in files.checkpoints]
    shown = [{key: result[key] for key in files.results[0]} for result in reader.results()]
    assert shown == files.results
    assert reader.result_names() == {"step_00000010/language", "step_00000020/language"}
    assert reader.last_events(bool)[-1] == files.steps[-1]
    assert reader.failures() == {"step_00000010/recall": "no memory"}


def test_a_watcher_reads_on_and_begins_again_with_a_replaced_log(run):
    reader = RunReader(run.path)
    stamps = reader.stamps()
    assert reader.stamps() == stamps
    reader.failures()
    record_event(run, "evaluation_failed", step=20, suite="recall", message="again")
    assert list(reader.failures()) == ["step_00000010/recall", "step_00000020/recall"]
    assert reader.stamps() != stamps
    run.supervision_file.write_text(
        json.dumps({"kind": "evaluation_failed", "time": 9.0, "step": 20, "suite": "language", "message": "other"})
        + "\n"
    )
    assert reader.failures() == {"step_00000020/language": "other"}


def test_what_is_damaged_is_empty_to_a_watcher_and_an_error_to_a_report(run):
    run.config_file.write_text("name: [")
    (run.evals / "step_00000020" / "language.json").write_text('{"suite": "lang')
    run.environment_file.write_text("")
    with open(run.supervision_file, "a") as file:
        file.write("nonsense\n")
    reader = RunReader(run.path)
    assert (reader.config(), reader.environment(), reader.config_text()) == ({}, {}, "name: [")
    assert [result["step"] for result in reader.results()] == [10]
    assert list(reader.failures()) == ["step_00000010/recall"]
    with pytest.raises(UserError, match="not valid YAML"):
        RunFiles(run.path)


def test_a_folder_that_is_removed_meanwhile_is_empty(run):
    reader = RunReader(run.path)
    assert reader.failures()
    assert reader.error_since(0.0) is None
    write_json(run.error_file, {"message": "the disk is full"})
    assert reader.error_since(0.0) == "the disk is full"
    assert reader.error_since(9e9) is None, "it was trained again since"
    shutil.rmtree(run.path)
    assert (reader.config(), reader.config_text(), reader.environment(), reader.failures()) == ({}, "", {}, {})
    assert (reader.complete_steps(), reader.results(), reader.result_names()) == ([], [], set())
    assert (reader.heartbeats(), reader.last_events(bool), reader.finished()) == ([], [], False)
    assert reader.error_since(0.0) is None
    assert reader.stamps() == (None,) * 10
