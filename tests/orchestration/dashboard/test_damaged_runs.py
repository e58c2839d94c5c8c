"""Hundreds of damaged runs beside good ones: pages and tables stay up, small, and right about the good ones."""

import html
import io
import json
import logging
import re
import time
from urllib.parse import quote

import pytest
from rich.console import Console

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.monitor.status import Status, find_runs
from echo_lm.orchestration.tracking.mlflow import Tracker
from tests.helpers.damaged_runs import damaged_copy
from tests.helpers.run_folders import STEPS, write_finished, write_study
from tests.orchestration.dashboard.test_serve import get

MOST_BYTES = 5_000_000
SECONDS = 20.0


def looks_survive(serve, root, numbers) -> None:
    """Serve and `status` beside damaged runs."""
    good = [write_finished(root / "runs", f"good-{letter}") for letter in "ab"]
    for number in numbers:
        damaged_copy(good[0], root / "runs", number)
    write_study(root / "studies")
    address = serve(root / "runs", root / "studies")
    status, page = get(address, "/")
    assert (status, len(page) < MOST_BYTES) == (200, True)
    text = page.decode()
    for name in ("good-a", "good-b"):
        row = re.search(rf'<tr id="run-{name}".*?</tr>', text, re.DOTALL)[0]
        assert f'<b class="step">{STEPS}</b>' in row
        assert "finished" in row
        live = json.loads(get(address, f"/live/runs/{name}?since=")[1])
        assert len(live["curves"]["loss"]["step"]) == STEPS
    for name in map(html.unescape, re.findall(r'<tr id="run-[^"]*" data-name="([^"]*)"', text)):
        for path in (f"/runs/{quote(name, safe='')}", f"/live/runs/{quote(name, safe='')}?since="):
            began = time.monotonic()
            status, body = get(address, path)
            assert status in ((404,) if "\ufffd" in name else (200, 204)), (path, body[:300])
            assert len(body) < MOST_BYTES, path
            assert b"root:x:" not in body, path
            assert time.monotonic() - began < SECONDS, path
        status, body = get(address, f"/compare?run=good-a&run={quote(name, safe='')}")
        assert status in (200, 404), (name, body[:300])
        assert len(body) < MOST_BYTES, name
    assert get(address, "/studies")[0] == get(address, "/nodes")[0] == 200
    console = Console(width=300, file=io.StringIO())
    console.print(Status().table(find_runs([], root / "runs")))
    assert console.file.getvalue().count(f"{STEPS}/{STEPS}") >= 2


def test_damaged_runs_hide_no_others(serve, tmp_path, caplog):
    looks_survive(serve, tmp_path, range(40))
    assert "could not be answered" not in caplog.text


@pytest.mark.slow
def test_five_hundred_damaged_runs_hide_no_others(serve, tmp_path, caplog):
    looks_survive(serve, tmp_path, range(500))
    assert "could not be answered" not in caplog.text


@pytest.mark.slow
def test_a_damaged_run_is_tracked_or_refused_in_one_line(tmp_path):
    good = write_finished(tmp_path / "runs", "good")
    for number in range(60):
        folder = damaged_copy(good, tmp_path / "runs", number)
        problem = ""
        try:
            tracker = Tracker(folder, f"sqlite:///{tmp_path}/mlflow.db")
            assert tracker.sync(alive=False) or tracker.problem
            problem = tracker.problem
        except UserError as error:
            problem = str(error)
        assert "\n" not in problem, number


def test_no_warning_is_lost(caplog):
    """The check of `caplog` above would see a request that failed."""
    logging.getLogger("echo_lm.orchestration.dashboard.guard").warning("%s could not be answered", "/")
    assert "could not be answered" in caplog.text
