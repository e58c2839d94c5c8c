"""The end of `echo-lm run`: it never ends as if its record in MLflow were complete when it is not."""

import shutil

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import write_json
from echo_lm.orchestration.launch.run import _sync_briefly, run_pipeline
from echo_lm.orchestration.tracking.client import default_database
from echo_lm.pipeline.run.events import EventLog
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.tracked_runs import START, all_runs, write_steps


@pytest.fixture
def trained(tmp_path, data_root, smoke) -> tuple:
    """A configuration and the folder of its finished run, without evaluations, so that no cluster is needed."""
    config = smoke("train.steps=20", "evaluation.suites=[]")
    run = RunFolder(tmp_path / "tree of runs" / "runs" / "small")
    run.path.mkdir(parents=True)
    run.prepare(config, data_root / config.data.name)
    with EventLog(run.events_file) as log:
        log.write("start", time=START, step=0)
        write_steps(log, 1, 20)
        log.write("finish", time=START + 30, step=20, tokens=1280)
    write_json(run.finished_file, {"step": 20, "tokens": 1280})
    return config, run


def test_a_last_update_that_failed_is_one_line_with_its_repair(trained, data_root, empty_store, capsys):
    config, run = trained
    database = default_database(run.path)
    database.write_text("no database")
    with pytest.raises(UserError) as raised:  # exit code 2
        run_pipeline(config, run, data_root)
    line = str(raised.value)
    assert "\n" not in line
    assert "is trained and evaluated" in line
    assert "is damaged, or no database" in line
    assert f"`echo-lm track '{run.path}'`" in line
    assert "report:" in capsys.readouterr().out
    shutil.copy(empty_store, database)
    run_pipeline(config, run, data_root)
    assert "mlflow ui" in capsys.readouterr().out
    assert all_runs(run.path)[0].info.status == "FINISHED"


def test_a_run_that_gave_up_has_failed_in_mlflow(trained, empty_store, capsys):
    _, run = trained
    shutil.copy(empty_store, default_database(run.path))
    run.finished_file.unlink()
    run.events_file.unlink()
    with EventLog(run.events_file) as log:
        log.write("start", step=0)
        log.write("step", step=1, loss=1.0)
    _sync_briefly(run, None)
    assert all_runs(run.path)[0].info.status == "FAILED"
    assert capsys.readouterr().out == ""


def test_a_stopped_run_says_that_its_record_is_behind(trained, capsys):
    _, run = trained
    default_database(run.path).write_text("no database")
    _sync_briefly(run, "sqlite:///" + str(default_database(run.path)))
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert "is damaged, or no database" in line
    assert "--tracking-uri" in line
