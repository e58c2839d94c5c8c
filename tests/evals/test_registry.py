"""Evaluation protocols: one from a file outside of the package is loaded, hashed, measured and summarized like a built-in one."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from echo_lm.evals import protocols as protocol_package
from echo_lm.evals import registry
from echo_lm.evals.config import Suite, load_suite
from echo_lm.evals.registry import BUILT_IN, RESULT_KEYS, SUITE_KEYS, EvaluationProtocol, all_protocols, register
from echo_lm.evals.runner import run_suite
from echo_lm.evals.summary import write_summary
from echo_lm.models.common.errors import UserError

PAGE = (Path(__file__).parents[2] / "docs/guides/extending.md").read_text(encoding="utf-8")


def block(language: str, first_line: str) -> str:
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.S) if text.startswith(first_line)]
    return found


@pytest.fixture(autouse=True)
def _nothing_stays_registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def suite_file(tmp_path) -> Path:
    """The suite of docs/guides/extending.md."""
    path = tmp_path / "mine.yaml"
    path.write_text(block("yaml", "# mine.yaml"))
    return path


def import_example(folder: Path) -> None:
    """Import the protocol of docs/guides/extending.md, which registers itself."""
    path = folder / "copying.py"
    path.write_text(block("python", "# copying.py"))
    spec = importlib.util.spec_from_file_location("copying", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_protocol_of_a_file_is_measured_and_summarized(dataset, model_folder, tmp_path, suite_file):
    import_example(tmp_path)
    output = tmp_path / "run" / "evals" / "step_00000100" / "mine.json"
    progress = []
    result = run_suite(
        model_folder,
        str(suite_file),
        dataset.folder,
        output,
        step=100,
        tokens=6400,
        on_progress=lambda *counts: progress.append(counts),
    )
    assert json.loads(output.read_text()) == result
    assert [(row["length"], row["queries"]) for row in result["copying"]] == [(16, 32 * 15), (64, 32 * 63)]
    assert result["metrics"] == {f"copying/length-{row['length']}": row["accuracy"] for row in result["copying"]}
    assert (result["rows"], result["tasks"], result["skipped"], result["decode"]) == ([], [], {}, [])
    assert progress[-1] == (32 * 2 * (16 + 64),) * 2
    page = write_summary(tmp_path / "run").read_text()
    assert "| length | copied | chance |" in page
    assert f"| 64 | {result['copying'][1]['accuracy']:.1%} | 0.2% |" in page


def test_the_configuration_of_a_registered_protocol_is_checked_and_hashed(tmp_path, suite_file):
    with pytest.raises(UserError, match="unknown key copying: "):
        load_suite(suite_file)
    import_example(tmp_path)
    before = load_suite(suite_file).sha256
    assert before == load_suite(suite_file).sha256
    suite_file.write_text(suite_file.read_text().replace("[16, 64]", "[16, 64], sequences: 32"))
    assert load_suite(suite_file).sha256 == before, "a default that is written out is the same measurement"
    suite_file.write_text(suite_file.read_text().replace("sequences: 32", "sequences: 8"))
    assert load_suite(suite_file).sha256 != before
    suite_file.write_text(suite_file.read_text().replace("sequences", "sequence"))
    with pytest.raises(UserError, match=r"unknown key copying\.sequence: did you mean 'sequences'\?"):
        load_suite(suite_file)


@pytest.mark.parametrize(
    ("key", "nearest"), [("langage", "language"), ("big_bench", "bigbench"), ("batchtokens", "batch_tokens")]
)
def test_a_misspelt_protocol_is_refused_with_the_nearest_name(tmp_path, key, nearest):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\n{key}: {{tokens: 100, sequence_length: 10}}\n")
    with pytest.raises(UserError) as raised:
        load_suite(path)
    assert str(raised.value) == f"suite {path}: unknown key {key}: did you mean {nearest!r}?"
    with pytest.raises(ValueError, match=f"unknown key {key}: did you mean '{nearest}'"):
        Suite(name="mine", protocols={key: {}})


def test_a_misspelt_protocol_without_a_near_name_is_refused_with_all(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nqqq: {}\n")
    with pytest.raises(
        UserError, match="unknown key qqq: valid keys: name, .*recall, language, harness, bigbench, decode"
    ):
        load_suite(path)


def example(name: str) -> EvaluationProtocol:
    return EvaluationProtocol(name, int, lambda *_: 0, lambda *_: None, lambda _: [])


@pytest.mark.parametrize("name", ["language", "adapt", "rows", "step"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(UserError, match=f"cannot be called '{name}'"):
        register(example(name))


def test_a_protocol_that_is_registered_again_is_replaced():
    register(example("mine"))
    again = register(example("mine"))
    assert all_protocols()["mine"] is again


def test_names_that_cannot_be_taken_are_those_of_suites_and_result_files(dataset, model_folder, tmp_path):
    assert set(SUITE_KEYS) == set(Suite.model_fields) - {"protocols"}
    suite = Suite(name="small", protocols={"language": {"tokens": 100, "sequence_length": 50}})
    result = run_suite(model_folder, suite, dataset.folder, tmp_path / "small.json", step=1, tokens=1)
    assert [*RESULT_KEYS[:-1], "decode", "language", RESULT_KEYS[-1]] == list(result)


def test_every_file_of_the_package_is_a_protocol_of_its_name():
    files = {path.stem for folder in protocol_package.__path__ for path in Path(folder).glob("*.py")}
    assert files - {"__init__"} == set(BUILT_IN)
    assert [protocol.name for protocol in all_protocols().values()] == list(BUILT_IN)


def test_loading_suites_loads_nothing_heavy():
    code = "import sys\nfrom echo_lm.evals.config import load_suite, suite_names\n"
    code += "for name in suite_names():\n    load_suite(name).sha256\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "echo_lm" in loaded
    assert not loaded & {"torch", "lm_eval", "datasets", "ray", "mlflow", "matplotlib", "pandas", "tokenizers"}
