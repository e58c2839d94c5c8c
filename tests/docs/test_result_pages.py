"""Pages about recall sweeps are made from their rows."""

import os
from pathlib import Path

import pytest

from echo_lm.evals.sweeps.report import as_page, command_of, load_report, notes_beside, numbers_of
from echo_lm.evals.sweeps.report_figures import figures_of
from tests.test_layout import ROOT

PAGES, ROWS = ROOT / "docs/results", ROOT / "benchmarks/results/tables"
SWEEPS = sorted(
    path.stem for path in PAGES.glob("*.md") if path.read_text(encoding="utf-8").startswith("# Recall sweep: ")
)
LARGEST_FILE, LARGEST_FOLDER = 500_000, 4_000_000
LONGEST = 120  # lines of a page


def test_there_are_pages():
    assert len(SWEEPS) > 15


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_page_is_what_its_rows_give(sweep):
    report, page = load_report(Path(sweep), ROWS), PAGES / f"{sweep}.md"
    figures = list(figures_of(report))
    link = os.path.relpath(numbers_of(ROWS, sweep), PAGES)
    assert page.read_text() == as_page(report, command_of(Path(sweep)), notes_beside(page), figures, link, LONGEST), (
        f"run: echo-lm sweep report {sweep} --sweeps benchmarks/results/tables --out docs/results --lines {LONGEST}"
    )
    assert {path.name for path in (PAGES / "figures").glob(f"{sweep}_*.png")} == set(figures)


@pytest.mark.parametrize("page", sorted(PAGES.rglob("*.md")), ids=lambda page: str(page.relative_to(PAGES)))
def test_a_page_is_short(page):
    """`report.md` beside a page is what `echo-lm` wrote for one run or study, kept as it was."""
    assert page.name == "report.md" or len(page.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_results_are_small():
    files = [path for path in PAGES.rglob("*") if path.is_file()]
    assert {path.name for path in files if path.stat().st_size > LARGEST_FILE} == set()
    assert sum(path.stat().st_size for path in files) < LARGEST_FOLDER
