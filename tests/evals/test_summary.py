"""The summary of a run: figures that are there, the same on every drawing, and a page that says what the results say."""

from echo_lm.evals.figures.recall import accuracy_by_length, capacity_curve
from echo_lm.evals.scores import accuracy
from echo_lm.evals.summary import write_summary
from echo_lm.models.common.files import write_json


def row(task: str, pairs: int, length: int, correct: int, **options) -> dict:
    label = "-".join([task, str(pairs), *(f"{name}-{value}" for name, value in options.items())])
    cell = {"task": task, "label": label, "pairs": pairs, "length": length, "options": options, "ceiling": 1.0}
    return cell | accuracy(correct, 1000, chance=1 / 32)


def write_result(folder, step: int, correct: int) -> None:
    rows = [row("mqar", pairs, length, correct) for pairs in (2, 8, 32) for length in (64, 256)]
    rows += [row("niah", 1, length, correct, depth=depth) for depth in (0, 0.5, 1) for length in (64, 1024)]
    skipped = {"hellaswag": "the hub is away", "piqa": "the hub is away", "arc_easy": "it moved"}
    result = {"suite": "mine", "step": step, "tokens": step * 100, "rows": rows, "metrics": {}, "adapted": step == 20}
    result |= {"model": {"name": "small", "rank": 8, "state_bytes": 2048}, "skipped": skipped}
    result["tasks"] = [{"task": "agreement"} | accuracy(600, 1000, chance=0.5)]
    result["decode"] = [{"context": 1024, "tokens_per_second": 500.0, "state_bytes": 2048, "peak_bytes": None}]
    write_json(folder / "evals" / f"step_{step:08d}" / "mine.json", result)


def test_the_page_and_its_figures(tmp_path):
    assert "No checkpoint" in write_summary(tmp_path).read_text()
    write_result(tmp_path, 10, 300)
    write_result(tmp_path, 20, 950)
    page = write_summary(tmp_path).read_text()
    names = {"mqar", "niah", "length", "depth", "pairs-per-rank", "pairs-per-state", "training"}
    figures = {path.name: path.read_bytes() for path in (tmp_path / "evals" / "figures").iterdir()}
    assert set(figures) == {f"mine-{name}.png" for name in names}
    assert all(f"figures/{name})" in page for name in figures)
    assert "step 20, on an adapted copy" in page
    assert "| mqar-8 | 8 | 256 | 1,000 | 95.0% | 93.5% to 96.2% | 3.1% | 100% |" in page
    assert "| agreement | 1,000 | 60.0% | 56.9% to 63.0% | 50.0% |" in page
    assert "Left out: hellaswag, piqa (the hub is away); arc_easy (it moved)." in page
    assert "| 1,024 | 500 | 2 KiB |  |" in page
    assert write_summary(tmp_path).read_text() == page
    assert {path.name: path.read_bytes() for path in (tmp_path / "evals" / "figures").iterdir()} == figures


def test_figures_of_several_arms(tmp_path):
    arms = {
        name: [row("mqar", 8, 2**i, correct - 40 * i) for i in range(6, 21)]
        for name, correct in (("a", 1000), ("b", 900))
    }
    path = accuracy_by_length(tmp_path / "length.png", arms, "mqar-8")
    one = accuracy_by_length(tmp_path / "one.png", {"a": arms["a"]}, "mqar-8")
    assert path.read_bytes() != one.read_bytes()
    grids = {
        name: ([row("mqar", pairs, 64, 1000 - 9 * pairs) for pairs in (1, 8, 32)], size)
        for name, size in (("a", 24), ("b", 48))
    }
    assert capacity_curve(tmp_path / "capacity.png", grids, "mqar", "rank").stat().st_size > 5000
