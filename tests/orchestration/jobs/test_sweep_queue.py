"""Queues of recall sweeps: jobs distributed, stopped in time, refused before they begin."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.jobs import sweep_queue
from tests.helpers.tiny_sweep import SWEEP, sweep_file


def queue(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "echo_lm.orchestration.jobs.sweep_queue", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_a_queue_shares_out_jobs_and_joins_what_they_found(tmp_path):
    sweep = sweep_file(tmp_path)
    jobs = tmp_path / "jobs.txt"
    jobs.write_text(f"{sweep} --arms one\n\n{sweep} --arms two --part 1/2\n")
    process = queue(jobs, "--out", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    runs = json.loads((tmp_path / "out" / "tiny.json").read_text())["runs"]
    assert Counter(run["arm"] for run in runs) == {"one": 4, "two": 2}


@pytest.mark.parametrize(
    ("jobs", "options", "message"),
    [
        ("absent.yaml", [], "sweep absent.yaml does not exist"),
        ("{sweep} --arms three", [], "sweep tiny has no arm 'three': it has one, two"),
        ("{sweep} --part 2/2", [], "--part is '2/2'"),
        ("{sweep} --arms 'one", [], "No closing quotation"),
        ("{unknown}", [], "unknown model 'paper-1m-mamba3'; did you mean"),
        ("\n", [], "holds no job"),
        ("{sweep}", ["--seconds", "nan"], "--seconds nan --workers 2: above 0, and at least 1"),
        ("{sweep}", ["--workers", "0"], "--seconds inf --workers 0: above 0"),
        (None, [], "No such file"),
    ],
)
def test_a_wrong_queue_gives_one_line_before_anything_runs(tmp_path, monkeypatch, jobs, options, message):
    path, out = tmp_path / "jobs.txt", tmp_path / "out"
    if jobs is not None:
        unknown = sweep_file(tmp_path, name="unknown", arms={"one": {"preset": "paper-1m-mamba3"}})
        path.write_text(jobs.format(sweep=sweep_file(tmp_path), unknown=unknown))
    with pytest.raises(UserError, match=message) as error:
        sweep_queue.run_queue(sweep_queue.queue_parser().parse_args([str(path), "--out", str(out), *options]))
    assert len(str(error.value).splitlines()) == 1
    assert not out.exists()


def test_a_queue_ends_in_time_and_keeps_what_is_finished(tmp_path):
    slow = SWEEP["training"] | {"steps": 10**6}
    quick, slow = sweep_file(tmp_path, name="quick"), sweep_file(tmp_path, name="slow", training=slow)
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("".join(f"{sweep} --arms one\n" for sweep in (quick, slow, quick)))
    process = queue(jobs, "--out", tmp_path / "out", "--seconds", 40, "--least", 5)
    assert process.returncode == 1
    assert "time is up: 1 jobs are stopped\n" in process.stdout
    assert "1 jobs never began" in process.stdout
    assert len(json.loads((tmp_path / "out" / "quick.json").read_text())["runs"]) == 4
    assert json.loads((tmp_path / "out" / "slow.json").read_text())["runs"] == []


def test_a_job_gets_one_of_the_gpus_that_a_scheduler_gave(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    started = []
    monkeypatch.setattr(sweep_queue.subprocess, "Popen", lambda command, env, **_: started.append((command, env)))
    sweep_queue.Job("tiny", [str(sweep_file(tmp_path))], tmp_path / "job").start(1, 60)
    ((command, environment),) = started
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert command[command.index("--device") + 1] == "cuda"
