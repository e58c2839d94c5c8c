"""Suites: the ones in the package load, and what is wrong with another is said in one line."""

import pytest

from echo_lm.data_prep.recall import minimum_length
from echo_lm.evals.config import load_suite, suite_names
from echo_lm.evals.measurements.recall_cells import cells_of
from echo_lm.models.common.errors import UserError


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_of_the_package_loads_and_its_cells_fit(name):
    suite = load_suite(name)
    assert suite.name == name
    for cell in cells_of(suite.recall):
        assert minimum_length(cell.task, pairs=cell.pairs, **cell.options) <= cell.length


def test_the_quick_suite_asks_enough_of_the_headline_and_stays_cheap():
    cells = cells_of(load_suite("recall-quick").recall)
    headline = {cell.length: cell.sequences * cell.pairs for cell in cells if cell.label == "sysprompt-4"}
    assert set(headline) == {64, 256, 1024}
    assert min(headline.values()) >= 1000
    # A model of 1-3M parameters passes 10-20 thousand tokens a second through one CPU core.
    assert sum(cell.tokens for cell in cells) < 500_000


def test_an_unknown_suite_names_the_nearest():
    with pytest.raises(UserError, match="did you mean recall-quick"):
        load_suite("recall_quik")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: mine\nlanguage: {tokens: 10, sequence_lenght: 5}", r"language\.sequence_lenght.*'sequence_length'"),
        ("name: mine\nrecall: [{task: niah, pairs: 4, lengths: [64], queries: 10}]", r"recall\.0\.pairs"),
        ("name: mine\nrecall: [{task: niah, pairs: [4], lengths: [64], queries: 0}]", r"recall\.0\.queries"),
        ("name: mine", "measures nothing"),
        ("- a\n- b", "suite .*mine.yaml: "),
        ("name: [", "not YAML"),
    ],
)
def test_a_wrong_suite_file_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        load_suite(path)
    assert "\n" not in str(raised.value)


def test_a_missing_suite_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml does not exist"):
        load_suite(tmp_path / "absent.yaml")


def test_identity_is_what_is_measured_not_how_it_is_described(tmp_path):
    def identity(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text("name: mine\nlanguage: {tokens: 100, sequence_length: 10}\n" + text)
        return load_suite(path).sha256

    assert identity("") == identity("description: other words")
    assert identity("") != identity("batch_tokens: 99")
