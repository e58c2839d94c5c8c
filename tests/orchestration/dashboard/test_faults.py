"""Faults that were seen in the dashboard, each caused again: parallel looks, links, odd names and values, open connections."""

import json
import os
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
import uvicorn

from echo_lm.orchestration.dashboard import server as server_module
from echo_lm.orchestration.dashboard import table as table_module
from echo_lm.orchestration.dashboard.app import make_app
from echo_lm.orchestration.dashboard.curves.history import History
from echo_lm.orchestration.dashboard.curves.points import MOST_BUCKETS
from echo_lm.orchestration.dashboard.formats import count, decimals, duration, moment, percent, significant, size
from echo_lm.orchestration.dashboard.guard import Guard
from echo_lm.orchestration.dashboard.studies import study_detail, study_summary
from echo_lm.orchestration.dashboard.table import RunTable
from tests.helpers.run_folders import (
    STEPS,
    events_of,
    start_event,
    step_event,
    write_crashed,
    write_finished,
    write_run,
    write_running,
    write_study,
)
from tests.orchestration.dashboard.test_serve import get

SECURITY = ("content-security-policy", "x-content-type-options", "referrer-policy")


def write_long(root, name, steps, restarts):
    """A run of many steps that was started again several times at its last step."""
    with open(write_run(root, name, events_of(1, 1e9)) / "events.jsonl", "w") as file:
        for part in range(restarts + 1):
            first, last = part * steps // (restarts + 1), (part + 1) * steps // (restarts + 1)
            file.write(json.dumps(start_event(first, 1e9 + first)) + "\n")
            for step in range(first + 1, last + 1):
                file.write(json.dumps(step_event(step, 1e9 + step)) + "\n")
    return root / name


def test_parallel_first_looks_see_the_run_as_it_is(serve, tmp_path):
    write_long(tmp_path / "runs", "long", 6000, restarts=2)
    address = serve(tmp_path / "runs", tmp_path / "none")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: get(address, "/live/runs/long?since="), range(4)))
    for _, body in answers:
        live = json.loads(body)
        assert live["curves"]["loss"]["step"][-1] == 6000
        assert '<b data-value="restarts">2</b>' in live["parts"]["tiles"]


def test_a_long_curve_keeps_its_peaks_in_bounded_memory(tmp_path):
    folder = write_long(tmp_path, "long", 30_000, restarts=1)
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps(step_event(30_001, 2e9) | {"loss": 99.0}) + "\n")
        for step in range(30_002, 40_000):
            file.write(json.dumps(step_event(step, 2e9)) + "\n")
    history = History(folder)
    while not history.version or history.unread:
        history.read()
    curve = history.curve("loss")
    assert max(curve["value"]) == 99.0
    assert curve["step"][curve["value"].index(99.0)] == 30_001
    assert curve["tokens"][curve["value"].index(99.0)] == 30_001 * 512
    assert len(history._points._low) <= MOST_BUCKETS
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps(start_event(20_000, 3e9)) + "\n")
    history.read()
    assert 19_000 < history.curve("loss")["step"][-1] <= 20_000, "what came after is trained again"


def test_links_lead_nowhere(serve, tmp_path):
    secret = write_finished(tmp_path / "elsewhere", "other")
    runs, studies = tmp_path / "runs", tmp_path / "studies"
    for name in ("config.yaml", "environment.json", "events.jsonl"):
        path = write_finished(runs, f"link-{name}") / name
        path.unlink()
        path.symlink_to(secret / name)
    folder = write_study(studies)
    (folder / "figures/evil.png").symlink_to("/etc/passwd")
    plan = json.loads((folder / "plan.json").read_text())
    plan["cells"].append(plan["cells"][0] | {"name": "../../../elsewhere/other"})
    (folder / "plan.json").write_text(json.dumps(plan))
    address = serve(runs, studies)
    assert b"config.yaml is damaged" in get(address, "/")[1]
    assert b"preset" not in get(address, "/runs/link-config.yaml")[1]
    assert b"2 CPU cores" not in get(address, "/runs/link-environment.json")[1]
    assert "loss" not in json.loads(get(address, "/live/runs/link-events.jsonl?since=")[1])["curves"]
    assert get(address, "/studies/mine/figures/evil.png")[0] == 404
    page = get(address, "/studies/mine")[1]
    assert b"evil" not in page
    assert b"elsewhere" not in page


def test_a_linked_run_is_followed_if_the_link_is_ones_own(tmp_path):
    other = write_finished(tmp_path / "elsewhere", "other")
    (tmp_path / "runs").mkdir()
    for name in ("own", "foreign"):
        (tmp_path / "runs" / name).symlink_to(other)
    os.lchown(tmp_path / "runs/foreign", 12345, 12345)  # as if a colleague had made it
    table = RunTable(tmp_path / "runs")
    states = {row.name: (row.state, row.model) for row in table.rows()[1]}
    assert states == {"own": ("finished", table.row("own").model), "foreign": ("damaged", "")}
    assert (table.is_readable("own"), table.is_readable("foreign")) == (True, False)


def test_the_documents_of_a_run_are_pages_without_scripts(serve, tmp_path):
    folder = write_finished(tmp_path / "runs")
    (folder / "figures").mkdir()
    (folder / "figures/loss.png").write_bytes(b"\x89PNG")
    (folder / "report.md").write_text("# Report\n\n![loss](figures/loss.png)\n\n<script>alert(1)</script>\n")
    (folder / "model_card.md").symlink_to("/etc/passwd")
    address = serve(tmp_path / "runs", tmp_path / "none")
    page = get(address, "/runs/done")[1]
    assert b'href="/runs/done/report"' in page
    assert b"model_card" not in page
    report = get(address, "/runs/done/report")[1]
    assert b'src="data:image/png;base64,iVBORw=="' in report
    assert b"<script>" not in report
    assert get(address, "/runs/done/model_card")[0] == 404


@pytest.mark.parametrize("name", ["a#b", "what?", "50%25", "a&b=c", "ünï 'q\""])
def test_a_run_with_signs_in_its_name_has_its_curves(serve, tmp_path, name):
    write_finished(tmp_path / "runs", "plain").rename(tmp_path / "runs" / name)
    address = serve(tmp_path / "runs", tmp_path / "none")
    href = re.search(r'class="name">.*?<a href="([^"]+)"', get(address, "/")[1].decode())[1]
    live = re.search(r'data-live="([^"]+)"', get(address, href)[1].decode())[1]
    assert live == f"/live/runs/{quote(name, safe='')}"
    assert len(json.loads(get(address, f"{live}?since=")[1])["curves"]["loss"]["step"]) == STEPS


def test_an_odd_value_costs_itself_only(serve, tmp_path):
    """NaN, a missing chance, a step as text, 1e300: the page comes, is narrow, and goes on being updated."""
    folder = write_finished(tmp_path / "runs", "odd")
    path = folder / "evals/step_00000040/recall-quick.json"
    result = json.loads(path.read_text())
    del result["rows"][0]["chance"]
    result["rows"][1] |= {"accuracy": 1e299, "length": "long"}
    path.write_text(json.dumps(result | {"started": "then", "decode": [{"context": None}]}))
    language = folder / "evals/step_00000040/language.json"
    language.write_text(language.read_text().replace("99.5", "NaN").replace("51234", "1e299"))
    (folder / "evals/step_00000030/language.json").write_text('{"suite": "language", "step": "30", "metrics": {}}')
    address = serve(tmp_path / "runs", tmp_path / "none")
    page = get(address, "/runs/odd")[1].decode()
    assert not re.search(r"\d{40}", page)
    live = json.loads(get(address, "/live/runs/odd?since=")[1])
    assert live["curves"]["heldout"]["step"] == [10, 20, 40]
    assert get(address, f"/live/runs/odd?since={live['version']}")[0] == 204


def test_an_alias_bomb_is_a_small_page(serve, tmp_path):
    folder = write_finished(tmp_path / "runs", "bomb")
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{new}: &{new} [{','.join(['*' + old] * 9)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)]
    (folder / "config.yaml").write_text("\n".join([*lines, "model: {preset: *h}", "data: {name: *h}"]))
    address = serve(tmp_path / "runs", tmp_path / "none")
    for path in ("/", "/runs/bomb", "/live/runs/bomb?since="):
        status, body = get(address, path)
        assert (status, len(body) < 100_000) == (200, True)
    assert b"model.preset is [..., ..., ..." in get(address, "/")[1]


@pytest.mark.parametrize("value", [1e300, -1e300, 1e299, float("nan"), float("inf"), 10**400, None, "abc"])
def test_no_number_is_long(value):
    for form in (count, decimals, significant, percent, duration, moment, size):
        assert len(form(value)) < 25


def test_a_shuffled_log_of_a_finished_run_and_one_behind_its_horizon(tmp_path):
    folder = write_finished(tmp_path, "shuffled")
    lines = (folder / "events.jsonl").read_text().splitlines()
    (folder / "events.jsonl").write_text("\n".join([lines[-1], *lines[:-1][::-1]]) + "\n")
    beyond = write_running(tmp_path, "beyond", step=STEPS)
    with open(beyond / "events.jsonl", "a") as file:
        file.write(json.dumps(step_event(3 * STEPS, 2e9)) + "\n")
    rows = {row.name: row for row in RunTable(tmp_path).rows()[1]}
    assert rows["shuffled"].step == STEPS
    assert (rows["beyond"].state, rows["beyond"].eta_seconds) == ("running", 0.0)


def headers_of(address, path, **headers):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        lines = "".join(f"{name}: {value}\r\n" for name, value in ({"Host": host} | headers).items())
        connection.sendall(f"GET {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().splitlines()
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in fields), body


def test_every_answer_has_the_security_headers(serve, tmp_path, monkeypatch, caplog):
    write_finished(tmp_path / "runs")
    address = serve(tmp_path / "runs", tmp_path / "none")
    for path, status in (("/", 200), ("/nothing", 404), ("/live/runs", 422), ("/static/style.css", 200)):
        got, headers, _ = headers_of(address, path)
        assert (got, [name for name in SECURITY if name not in headers]) == (status, []), path
    assert headers_of(address, "/", Host="evil.example")[0] == 400
    for part in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "default-src 'none'"):
        assert part in headers["content-security-policy"]
    monkeypatch.setattr("echo_lm.orchestration.dashboard.app.list_nodes", None)  # a mistake in the code
    status, headers, body = headers_of(address, "/nodes")
    assert (status, [name for name in SECURITY if name not in headers]) == (500, [])
    assert b"Traceback" not in body
    assert "/nodes could not be answered (TypeError" in caplog.text


def start(app, **config) -> tuple[str, uvicorn.Server, threading.Thread]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False, **config))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        pass
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", server, thread


def test_a_prefix_and_a_token(tmp_path):
    write_finished(tmp_path / "runs")
    app = make_app(tmp_path / "runs", tmp_path / "none", ["127.0.0.1"], prefix="/echo", token="let-me-in")
    address, server, thread = start(app)
    assert isinstance(app, Guard)
    try:
        assert headers_of(address, "/echo/")[0] == headers_of(address, "/?token=wrong")[0] == 401
        status, headers, _ = headers_of(address, "/echo/runs/done?token=let-me-in")
        assert (status, headers["location"]) == (303, "/echo/runs/done")
        cookie = headers["set-cookie"].split(";")[0]
        status, _, body = headers_of(address, "/echo/", Cookie=cookie)
        assert (status, b'href="/echo/runs/done"' in body) == (200, True)
        style = re.search(rb'href="(/echo/static/style.css[^"]*)"', body)[1].decode()
        assert headers_of(address, style, Authorization="Bearer let-me-in")[0] == 200
        assert headers_of(address, "/", Cookie=cookie)[0] == 200, "a proxy may strip the prefix"
    finally:
        server.should_exit = True
        thread.join(10)


def test_a_connection_that_sends_no_request_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.2)
    app = make_app(tmp_path, tmp_path / "none", ["127.0.0.1"])
    address, server, thread = start(app, http=server_module._protocol())
    host, port = address.removeprefix("http://").split(":")
    try:
        for sent in (b"", b"GET / HTTP/1.1\r\nHost: 127"):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(sent)
                assert connection.recv(100) == b""
    finally:
        server.should_exit = True
        thread.join(10)


def test_a_damaged_study_is_a_row_beside_the_others(serve, tmp_path):
    for name, change in (("hours", {"hours": "many"}), ("cells", {"cells": 7}), ("good", {})):
        path = write_study(tmp_path / "studies", name) / "plan.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    write_crashed(tmp_path / "runs")
    address = serve(tmp_path / "runs", tmp_path / "studies")
    page = get(address, "/studies")[1].decode()
    assert page.count("damaged: it cannot be read") == 2
    assert (get(address, "/studies/good")[0], get(address, "/studies/hours")[0]) == (200, 404)


@pytest.mark.parametrize(
    ("spending", "state"),
    [
        ({"choices": [{"left_out": []}, {"left_out": ["echo-60k-s0", "echo-500k-s0", 7]}]}, "left out"),
        ({"choices": [{"left_out": ["echo-500k-s0"]}, {"left_out": []}]}, "waiting"),
        ({"choices": {"left_out": 7}}, "waiting"),
    ],
)
def test_cells_that_no_longer_fit_into_the_hours_are_left_out(spending, state, tmp_path):
    """By the last choice; what is done stays done, and odd contents leave nothing out."""
    folder = write_study(tmp_path / "studies")
    (folder / "spending.json").write_text(json.dumps(spending))
    assert [row.state for row in study_detail(folder).rows] == ["done", "failed", state]
    assert study_summary(folder).counts[state] == 1


def test_a_fault_that_nobody_thought_of_is_a_row_with_its_reason(serve, tmp_path, monkeypatch):
    for name in ("good", "odd"):
        write_finished(tmp_path / "runs", name)
    real = table_module.read_run
    monkeypatch.setattr(table_module, "read_run", lambda run: real(run) if run.folder.name == "good" else 1 / 0)
    address = serve(tmp_path / "runs", tmp_path / "none")
    page = get(address, "/")[1]
    assert b'id="run-good"' in page
    assert b"it cannot be read (ZeroDivisionError: division by zero)" in page
    assert b"ZeroDivisionError" in get(address, "/runs/odd")[1]
    assert get(address, "/live/runs/odd?since=")[0] == 204


def test_no_answer_about_many_results_is_large(serve, tmp_path):
    """60 checkpoints with 400 rows and 1,500 metrics each."""
    folder = write_finished(tmp_path / "runs", "many")
    source = json.loads((folder / "evals/step_00000040/recall-quick.json").read_text())
    source["rows"] = [source["rows"][0] | {"label": f"task-{i % 50}", "length": 64 << (i // 50)} for i in range(400)]
    source["metrics"] = {f"recall/a-rather-long-name-of-a-task-{i}": i / 7 for i in range(1500)}
    for step in range(100, 160):
        path = folder / f"evals/step_{step:08d}/recall-quick.json"
        path.parent.mkdir()
        path.write_text(json.dumps(source | {"step": step}))
    address = serve(tmp_path / "runs", tmp_path / "none")
    live = json.loads(get(address, "/live/runs/many?since=")[1])
    chart = next(chart for chart in live["curves"]["recall"] if chart["label"] == "task-0")
    steps = [curve["step"] for curve in chart["checkpoints"]]
    assert (35 < len(steps) <= 40, steps[-1]) == (True, 159)
    metrics = "&".join(f"metric={name}" for name in ("loss", "grad_norm", "eval/recall-quick/recall/none"))
    paths = ("/", "/runs/many", "/live/runs/many?since=", "/compare?run=many", "/api/columns")
    for path in (*paths, f"/api/curves?run=many&{metrics}", "/api/curves.csv?run=many"):
        status, body = get(address, path)
        assert (status, len(body) < 5_000_000) == (200, True), (path, len(body))
