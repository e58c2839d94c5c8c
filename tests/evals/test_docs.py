"""docs/guides/evaluation.md: the example task is a task, and its suite runs."""

import re
from pathlib import Path

from echo_lm.data_prep.recall import RecallVocabulary, generate, seeded_generator
from echo_lm.evals.config import load_suite, suite_names
from echo_lm.evals.measurements.recall_cells import cells_of
from echo_lm.evals.runner import run_suite

PAGE = (Path(__file__).parents[2] / "docs/guides/evaluation.md").read_text(encoding="utf-8")


def block(language: str, first_line: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.S) if text.startswith(first_line)]
    assert len(found) == 1
    return found[0]


def test_the_example_task_runs_as_a_suite_and_has_one_right_answer(dataset, model_folder, tmp_path):
    (tmp_path / "pairkeys.py").write_text(block("python", "# pairkeys.py"))
    (tmp_path / "mine.yaml").write_text(block("yaml", "# mine.yaml"))
    output = tmp_path / "mine.json"
    result = run_suite(model_folder, str(tmp_path / "mine.yaml"), dataset.folder, output, step=1, tokens=1)
    assert [(row["label"], row["length"]) for row in result["rows"]] == [
        (f"pairkeys-{pairs}", length) for pairs in (2, 4) for length in (64, 256)
    ]
    for row in result["rows"]:
        assert row["low"] <= row["chance"] <= row["high"]
    vocabulary = RecallVocabulary()
    batch = generate(
        str(tmp_path / "pairkeys.py"),
        sequences=50,
        length=64,
        pairs=4,
        generator=seeded_generator("test"),
        vocabulary=vocabulary,
    )
    for row, (answer,) in zip(batch.tokens.tolist(), batch.answers.tolist(), strict=True):
        places = [i for i in range(60) if row[i : i + 2] == row[-2:]]
        assert [row[i + 2] for i in places] == [answer]


def test_a_changed_task_file_is_another_suite(tmp_path):
    (tmp_path / "pairkeys.py").write_text(block("python", "# pairkeys.py"))
    (tmp_path / "mine.yaml").write_text(block("yaml", "# mine.yaml"))
    before = load_suite(tmp_path / "mine.yaml").sha256
    with open(tmp_path / "pairkeys.py", "a") as file:
        file.write("# changed\n")
    assert load_suite(tmp_path / "mine.yaml").sha256 != before


def test_the_suites_of_the_page_are_those_of_the_package(tmp_path):
    for name in suite_names():
        assert f"| `{name}` |" in PAGE
    (tmp_path / "my_harness_tasks").mkdir()
    (tmp_path / "mine.yaml").write_text(block("yaml", "name: mine"))
    assert len(cells_of(load_suite(tmp_path / "mine.yaml").protocols["recall"])) == 14
