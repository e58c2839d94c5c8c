"""The dashboard in a real browser: every number on a page equals its file."""

import json
import re
import time

import pytest

from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.goodput import Goodput
from tests.helpers.pictures import take
from tests.helpers.run_folders import (
    LENGTHS,
    MACHINE,
    STEPS,
    step_event,
    write_checkpoint,
    write_crashed,
    write_finished,
    write_results,
    write_running,
    write_study,
)

LIVE_MS = 15_000


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("dashboard")
    folders = [write_finished(root / "runs"), write_running(root / "runs"), write_crashed(root / "runs")]
    write_study(root / "studies")
    return root, {folder.name: folder for folder in folders}


@pytest.fixture(scope="module")
def address(place, serve):
    return serve(place[0] / "runs", place[0] / "studies")


def last_step(folder):
    return steps(read_events(folder / "events.jsonl"))[-1]


def results(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("evals/*/*.json"))]


@pytest.mark.parametrize(
    ("name", "state", "evaluations"),
    [("done", "finished", "8 / 8"), ("going", "running", "2 / 4"), ("broken", "crashed", "2 / 4")],
)
def test_the_row_of_a_run_equals_its_files(page, address, place, name, state, evaluations):
    last = last_step(place[1][name])
    page.goto(address)
    row = page.locator(f"#run-{name}")
    assert row.locator(".badge").inner_text() == state
    assert row.locator(".step").inner_text() == str(last["step"])
    assert row.locator(".steps").inner_text().split("/")[1].strip() == str(STEPS)
    assert row.locator(".loss").inner_text() == f"{last['loss']:.3f}"
    assert row.locator(".rate").inner_text() == f"{last['tokens_per_second']:,.0f}"
    seconds_left = round((STEPS - last["step"]) * 512 / last["tokens_per_second"])
    assert row.locator(".eta").inner_text() == (f"{seconds_left} s" if state == "running" else "–")
    newest = max(path.parent.name for path in place[1][name].glob("checkpoints/*/complete.json"))
    assert row.locator(".checkpoint").inner_text().split("\n")[0] == str(int(newest.removeprefix("step_")))
    assert row.locator(".evaluations span").inner_text() == evaluations
    failed = row.locator(".evaluations .failed")
    assert (failed.inner_text() if failed.count() else "") == ("1 failed" if name == "broken" else "")


@pytest.mark.parametrize(
    ("name", "state", "restarts", "skips", "rollbacks", "counts"),
    [
        ("done", "finished", "0", "0", "0", ("8", "8")),
        ("going", "running", "0", "0", "0", ("2", "4")),
        ("broken", "crashed", "1", "1", "1", ("2", "4")),
    ],
)
def test_the_page_of_a_run_equals_its_files(page, address, place, name, state, restarts, skips, rollbacks, counts):
    folder, last = place[1][name], last_step(place[1][name])
    page.goto(f"{address}/runs/{name}")
    page.wait_for_selector("#pulse:not(.lost):not([hidden])")
    texts = {one.get_attribute("data-value"): one.inner_text() for one in page.locator("[data-value]").all()}
    heldout = [r for r in results(folder) if r["suite"] == "language"][-1]["metrics"]["language/bits_per_byte"]
    expected = {
        "loss": f"{last['loss']:.3f}",
        "loss_text": f"{last['loss_text']:.3f}",
        "loss_recall": f"{last['loss_recall']:.3f}",
        "heldout": f"{heldout:.3f}",
        "bits_per_byte": f"{last['bits_per_byte']:.3f}",
        "tokens_per_second": f"{last['tokens_per_second']:,.0f}",
        "mfu": f"{last['mfu']:.1%}",
        "memory_gib": f"{last['memory_gib']:.2f} GiB",
        "checkpoint_seconds": "0.37",
        "restarts": restarts,
        "skips": skips,
        "rollbacks": rollbacks,
        "done": counts[0],
        "wanted": counts[1],
    }
    assert {key: texts[key] for key in expected} == expected
    assert page.locator("h1 ~ .badge").inner_text() == state
    assert page.locator("#step").inner_text() == str(last["step"])


@pytest.mark.parametrize("name", ["done", "going", "broken"])
def test_the_curves_equal_the_files(page, address, place, name):
    """What plotly holds, point for point: the events (the last record of a step) and the results."""
    folder = place[1][name]
    page.goto(f"{address}/runs/{name}")
    page.wait_for_selector('[data-chart="recall"] .main-svg')
    drawn = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("[data-chart]")].map((figure) => [figure.dataset.chart,
            (figure.lastElementChild.data ?? []).map((t) => ({name: t.name, x: t.x, y: t.y}))]))"""
    )
    measured = steps(read_events(folder / "events.jsonl"))
    fields = {"bits_per_byte": 0, "grad_norm": 0, "learning_rate": 0, "tokens_per_second": 0, "memory_gib": 0}
    curves = {key: (drawn[key][at], key) for key, at in fields.items()}
    curves |= {"loss_text": (drawn["loss"][0], "loss_text"), "loss_recall": (drawn["loss"][2], "loss_recall")}
    for key, (trace, event_field) in curves.items():
        with_value = [event for event in measured if event[event_field] is not None]
        assert trace["x"] == [event["step"] for event in with_value], key
        assert trace["y"] == pytest.approx([event[event_field] for event in with_value], rel=1e-12), key
    sources = [event["loss_by_source"] for event in measured]
    assert {trace["name"]: trace["y"][-1] for trace in drawn["sources"]} == pytest.approx(sources[-1])
    assert [trace["name"] for trace in drawn["machine"]] == ["processors"] * 2 + ["memory"] * 2
    assert set(drawn["machine"][0]["y"]) == {MACHINE["cpu_percent"]}
    health = [event for event in read_events(folder / "events.jsonl") if event["kind"] == "health"]
    layers = [trace["name"] for trace in drawn["health"]]
    assert layers == ["layer 1", "layer 3"]
    assert drawn["health"][1]["y"][-1] == health[-1]["layers"][1]["mean_gate"]
    goodput, share = Goodput(), None
    for event in read_events(folder / "events.jsonl"):
        goodput.add([event])
        share = goodput.share if event["kind"] == "step" else share
    assert drawn["goodput"][0]["y"][-1] == pytest.approx(share, rel=1e-9)
    language = [result for result in results(folder) if result["suite"] == "language"]
    assert drawn["heldout"][0]["x"] == [result["step"] for result in language]
    assert drawn["heldout"][0]["y"] == [result["metrics"]["language/bits_per_byte"] for result in language]
    recall = [result for result in results(folder) if result["suite"] == "recall-quick"]
    for trace, result in zip(drawn["recall"][:-1], recall, strict=True):
        rows = [row for row in result["rows"] if row["label"] == "sysprompt-4"]
        assert trace == {"name": f"step {result['step']}", "x": list(LENGTHS), "y": [row["accuracy"] for row in rows]}
    take(page, {"done": "run", "broken": "crashed"}.get(name, "running"))


def test_the_tables_of_results_equal_the_files(page, address, place):
    page.goto(f"{address}/runs/done")
    last = results(place[1]["done"])[-1]
    assert last["suite"] == "recall-quick"
    for row in last["rows"]:
        texts = page.locator(f'tr[data-label="{row["label"]}"][data-length="{row["length"]}"] td').all_inner_texts()
        expected = [row["label"], str(row["pairs"]), f"{row['length']:,}", "1,000", f"{row['accuracy']:.1%}"]
        expected += ["", f"{row['low']:.1%} to {row['high']:.1%}", f"{row['chance']:.1%}"]
        assert [text.strip() for text in texts] == expected
    cells = page.locator("#evaluations tr[data-step='40'] td").all_inner_texts()
    mean = sum(row["accuracy"] for row in last["rows"]) / len(last["rows"])
    assert cells == ["2.200 bits/byte", f"{mean:.1%} recalled"]


def test_a_crash_is_told(page, address):
    page.goto(f"{address}/runs/broken")
    assert "the process is gone" in page.locator(".alert").inner_text()
    kinds = page.locator("#events li b").all_inner_texts()
    assert [kind for kind in kinds if kind != "evaluation failed"] == [
        "warning",
        "rollback",
        "skip",
        "restart",
        "start",
    ]
    cells = {one.get_attribute("data-suite"): one for one in page.locator("tr[data-step='20'] td").all()}
    assert "failed" in cells["language"].get_attribute("class")
    assert "no memory left" in cells["language"].inner_text()
    assert cells["recall-quick"].inner_text() == "waiting"


def test_an_evaluation_that_is_worked_on_is_shown_so(page, address):
    page.goto(f"{address}/runs/going")
    assert page.locator("tr[data-step='20'] td").all_inner_texts() == ["running", "waiting"]
    page.goto(f"{address}/nodes")
    nodes = {one.get_attribute("data-name"): one.inner_text() for one in page.locator("#nodes tbody tr").all()}
    assert "evaluates going step_00000020/language" in nodes["node-b"]
    assert "trains going" in nodes["node-a"]
    assert "trains (2 workers) going" in nodes["node-d"], "from its heartbeats alone"
    assert "idle" in nodes["node-c"]


def test_a_study_equals_its_files(page, address):
    page.goto(f"{address}/studies/mine")
    texts = {one.get_attribute("data-value"): one.inner_text() for one in page.locator("[data-value]").all()}
    assert texts == {"done": "1", "running": "0", "waiting": "1", "failed": "1"}
    rows = {one.get_attribute("data-name"): one for one in page.locator("#cells tbody tr").all()}
    assert rows["echo-60k-s0"].locator(".loss").inner_text() == "3.2164"
    assert rows["echo-200k-s0"].locator(".problem").inner_text() == "ran out of memory"
    assert "Which <b>scales</b> better?" in page.locator(".lead").inner_text()
    assert "echo <i>wins</i>." in page.locator(".answer").inner_text()
    page.wait_for_selector('[data-chart="study"] .main-svg')


def test_an_open_page_follows_the_files(page, serve, tmp_path):
    """New steps, a checkpoint, results and a new run appear by themselves; a finished run stops being shown as running."""
    folder = write_running(tmp_path / "runs", "live", step=12)
    address = serve(tmp_path / "runs", tmp_path / "studies")
    page.goto(f"{address}/runs/live")
    other = page.context.new_page()
    other.goto(address)
    assert page.locator("#step").inner_text() == "12"
    write_checkpoint(folder, 30)
    write_results(folder, 30)
    with open(folder / "events.jsonl", "a") as file:  # last: what shows step 30 shows the others too
        file.write(json.dumps(step_event(30, time.time())) + "\n" + '{"kind": "step", "ti')
    write_finished(tmp_path / "runs", "another")
    page.wait_for_selector("text=step 30 of 40", timeout=LIVE_MS)
    assert page.locator('[data-value="loss"]').inner_text() == f"{step_event(30, 0)['loss']:.3f}"
    assert page.locator('[data-value="checkpoint"]').inner_text() == "30"
    assert page.locator("tr[data-step='30'] td").first.inner_text() == "2.267 bits/byte"
    other.wait_for_selector("#run-another", timeout=LIVE_MS)
    assert other.locator("#run-live .step").inner_text() == "30"
    (folder / "finished.json").write_text("{}")
    other.wait_for_selector("#run-live .badge.finished", timeout=LIVE_MS)
    assert re.sub(r"\s+", " ", other.locator("#counts").inner_text()).startswith(
        "0 running 0 crashed 0 stopped 0 waiting 2 fin"
    )


def test_runs_can_be_filtered_and_sorted(page, address):
    page.goto(address)
    assert [one.get_attribute("data-name") for one in page.locator("#runs tbody tr").all()] == [
        "going",
        "broken",
        "done",
    ]
    take(page, "runs")
    page.locator("button[data-state=crashed]").click()
    assert page.locator("#runs tbody tr:visible").count() == 1
    page.locator("button[data-state=crashed]").click()
    page.locator("#filter").fill("don")
    assert page.locator("#runs tbody tr:visible").count() == 1
    assert page.locator("#shown").inner_text() == "1 of 3 runs shown"
    page.locator("#filter").fill("")
    page.locator("th button", has_text="Run").click()
    assert [one.get_attribute("data-name") for one in page.locator("#runs tbody tr").all()] == [
        "broken",
        "done",
        "going",
    ]
