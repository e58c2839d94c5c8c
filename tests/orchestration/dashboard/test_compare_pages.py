"""Comparing runs in a real browser: overlay, configurations, a sorted table, a study; desktop, phone, dark, print.

With ECHO_LM_PICTURES=docs/figures the pictures of the documentation are taken here and in `test_pages.py`.
"""

import shutil
import time
from pathlib import Path

import pytest

from tests.helpers.pictures import take
from tests.helpers.run_folders import STEPS, write_branch, write_compared, write_study, write_trunk_study
from tests.orchestration.dashboard.test_comparison import FAST, RECALL, SLOW

FIGURE = Path(__file__).parents[3] / "docs/figures/study_pocket_loss.png"
PHONE = {"width": 390, "height": 844}
RUNS = "&".join(f"run={name}" for name in (*FAST, *SLOW))


@pytest.fixture(scope="module")
def address(tmp_path_factory, serve):
    root = tmp_path_factory.mktemp("pages")
    write_compared(root / "runs")
    write_branch(root / "runs", root / "runs" / FAST[0], 20)
    write_study(root / "studies")
    write_trunk_study(root / "studies")
    for study in ("mine", "budgets"):
        shutil.copyfile(FIGURE, root / "studies" / study / "figures/loss_against_compute.png")
    return serve(root / "runs", root / "studies")


def drawn(page) -> list[dict]:
    page.wait_for_selector("#overlays .main-svg")
    return page.evaluate(
        """() => [...document.querySelectorAll("#overlays figure > div")].flatMap((chart) => chart.data.map((t) =>
            ({metric: chart.parentElement.dataset.metric, name: t.name, n: t.x.length, last: t.y.at(-1), fill: t.fill})))"""
    )


def wait_until(page, condition: str) -> None:
    """Wait for a JavaScript expression; playwright's own way needs `eval`, which the page's policy forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def width_of(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


def test_five_runs_in_one_chart_with_seeds_as_a_band(page, address):
    page.goto(f"{address}/compare?{RUNS}&smooth=0")
    assert [(one["name"], one["n"]) for one in drawn(page)] == [(name, STEPS) for name in (*FAST, *SLOW)]
    page.select_option("[name=group]", "seeds")
    wait_until(page, "document.querySelector('#overlays figure > div').data.length === 6")
    named = [one["name"] for one in drawn(page) if one["name"]]
    assert named == [f"{FAST[0]} and 2 more (mean of 3)", f"{SLOW[0]} and 1 more (mean of 2)"]
    assert [one["fill"] for one in drawn(page)].count("tonexty") == 2
    page.select_option("[name=metric]", ["loss", "eval/language/language/bits_per_byte"])
    page.select_option("[name=x]", "tokens")
    page.check("[name=logx]")
    wait_until(page, "document.querySelectorAll('#overlays .main-svg').length >= 4")
    assert "lowest" in page.locator("#overlays [role=img]").first.get_attribute("aria-label")
    page.reload()  # the address has it all
    assert {one["metric"] for one in drawn(page)} == {"loss", "eval/language/language/bits_per_byte"}
    assert page.locator("[name=group]").input_value() == "seeds"
    assert page.locator("[name=logx]").is_checked()
    page.uncheck("[name=logx]")
    take(page, "compare")


def test_zoom_is_linked(page, address):
    page.goto(f"{address}/compare?{RUNS}&metric=loss&metric=grad_norm")
    drawn(page)
    wait_until(page, "document.querySelectorAll('#overlays figure > div').length === 2")
    page.evaluate(
        "Plotly.relayout(document.querySelector('#overlays figure > div'), {'xaxis.range[0]': 5, 'xaxis.range[1]': 9})"
    )
    range_ = "document.querySelectorAll('#overlays figure > div')[1].layout.xaxis.range"
    wait_until(page, f"{range_}[1] === 9")
    page.reload()
    drawn(page)
    wait_until(page, "document.querySelectorAll('#overlays figure > div').length === 2")
    assert page.evaluate(range_) == [5, 9], "it stands in the address"
    page.select_option("select[name=x]", "tokens")
    wait_until(page, f"{range_}[1] > 9000")
    assert "range" not in page.url


def test_configurations_and_recall_of_two_runs_differ(page, address):
    page.goto(f"{address}/compare?run={FAST[0]}&run={SLOW[0]}")
    drawn(page)
    rows = {
        one.get_attribute("data-key"): one.locator("td").all_inner_texts()
        for one in page.locator("#differences tbody tr").all()
    }
    assert rows == {"train.learning_rate": ["0.003", "0.001"]}
    cells = page.locator("#paired tbody tr").first.locator("td").all_inner_texts()
    assert cells[1:3] == ["sysprompt-4", "64"]
    assert cells[5].startswith("-15.0")
    take(page, "differences")


def test_parent_and_branch_name_each_other_on_their_pages(page, address):
    page.goto(f"{address}/runs/{FAST[0]}")
    assert f"branches: {FAST[0]}-branch from step 20" in page.locator("#run").inner_text()
    page.get_by_role("link", name=f"{FAST[0]}-branch", exact=True).click()
    assert page.locator("h1").inner_text() == f"{FAST[0]}-branch"
    page.get_by_role("link", name=f"{FAST[0]}@20", exact=True).click()
    assert page.locator("h1").inner_text() == FAST[0]


def test_a_branch_is_drawn_with_its_parent(page, address):
    page.goto(f"{address}/compare?run={FAST[0]}-branch&smooth=0")
    assert [one["n"] for one in drawn(page)] == [21, 20]


def test_a_table_sorted_by_recall_stays_so(page, address):
    page.goto(address)
    for name in (FAST[0], SLOW[1]):
        page.locator(f'.pick[value="{name}"]').check()
    page.locator("#add input").fill(RECALL)
    page.locator("#add input").press("Enter")
    page.wait_for_selector("td.extra")
    page.locator("th button", has_text="sysprompt-4").click()
    page.locator("th button", has_text="sysprompt-4").click()
    page.locator("#filter").fill("length-64>0.5 rate")
    order = [one.get_attribute("data-name") for one in page.locator("#runs tbody tr").all()]
    assert len(order) == 5
    page.reload()
    assert [one.get_attribute("data-name") for one in page.locator("#runs tbody tr").all()] == order
    texts = [float(text) for text in page.locator("td.extra").all_inner_texts()]
    assert texts == sorted(texts) or texts == sorted(texts, reverse=True)
    assert page.locator("#filter").input_value() == "length-64>0.5 rate"
    take(page, "table")
    page.locator("#compare").click()
    assert {one["name"] for one in drawn(page)} == {FAST[0], SLOW[1]}


@pytest.mark.parametrize("path", ["/", f"/runs/{FAST[0]}", f"/compare?{RUNS}", "/studies", "/studies/mine", "/nodes"])
def test_a_phone_shows_the_page_in_its_width(page, address, path):
    page.set_viewport_size(PHONE)
    page.goto(address + path)
    page.wait_for_timeout(200)
    assert width_of(page) <= PHONE["width"]
    box = page.locator("#theme").bounding_box()
    assert box["x"] + box["width"] <= PHONE["width"]
    if path.startswith("/compare"):
        drawn(page)
        take(page, "phone", whole=False)


def test_dark_pages_print_dark_text_on_white(page, address):
    page.emulate_media(color_scheme="dark")
    page.goto(f"{address}/runs/{FAST[0]}")
    page.wait_for_selector('[data-chart="recall"] .main-svg')
    colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    assert page.evaluate(colours)[0] == "rgb(232, 235, 239)"
    take(page, "dark", whole=False)
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(colours) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert not page.locator(".bar nav").is_visible()
    take(page, "print", whole=False)


def test_pages_of_studies_and_nodes_follow_their_files(page, serve, tmp_path):
    write_study(tmp_path / "studies")
    page.goto(f"{serve(tmp_path / 'runs', tmp_path / 'studies')}/studies")
    page.wait_for_selector("#pulse:not(.lost):not([hidden])")
    write_study(tmp_path / "studies", "second")
    page.wait_for_selector('tr[data-name="second"]', timeout=30_000)


def test_a_study_shows_its_trunks_and_where_cells_branch(page, address):
    page.goto(f"{address}/studies/budgets")
    page.wait_for_selector('[data-chart="study_runs"] .main-svg')
    rows = {one.get_attribute("data-name"): one for one in page.locator("#cells tbody tr").all()}
    assert list(rows) == ["echo-60k-trunk", "echo-60k-trunk-branch", "later"]
    trunk = rows["echo-60k-trunk"]
    assert (trunk.locator(".badge").inner_text(), trunk.locator(".step").inner_text()) == ("waiting", "20")
    assert "2 cells branch from it" in trunk.inner_text()
    assert "20 / 30" in trunk.locator(".steps").inner_text()
    assert "from echo-60k-trunk at step 30" in rows["later"].inner_text()
    assert page.locator('[data-value="waiting"]').inner_text() == "2", "a trunk is no cell"
    lines = page.evaluate(
        """() => document.querySelector('[data-chart="study_runs"] > div').data.map((t) => [t.name, t.x[0], t.x.at(-1)])"""
    )
    assert lines == [["echo-60k-trunk", 512, 20 * 512], ["echo-60k-trunk-branch", 10 * 512, STEPS * 512]]
    take(page, "study")


def test_the_first_tab_leads_to_the_content(page, address):
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
