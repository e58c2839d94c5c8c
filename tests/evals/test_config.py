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
    for cell in cells_of(suite.protocols.get("recall", ())):
        assert minimum_length(cell.task, pairs=cell.pairs, **cell.options) <= cell.length


def test_the_quick_suite_asks_enough_of_the_headline_and_stays_cheap():
    cells = cells_of(load_suite("recall-quick").protocols["recall"])
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


PACKAGED = {
    "bigbench-mc": "6b74d53856bff96ad2d890edee861906d997a1197e18992d638936a426fd6a73",
    "capacity": "c7aa98e80294224df99c1f3ff8ab401afdcd775b050010844de14601fa946d2c",
    "decode": "e2f9757e8625932decd5c831ad829c212e2f727e3dc9ce551124db85ba4dc3cb",
    "harness": "87fb6149e10fc9f826b71f341dc244914094780d8f8a74c439c92537efc3d969",
    "language": "d36eb5fd608ac5c18f68935a7abe6a5eac43968bbf77ba7530efe58b7e3898b1",
    "length": "ed685181f3c1d1434f6e5d8a9dadd09ee807f4cbeaa989a0f6f0c5ab56286d6b",
    "length-quick": "9390093a3137c3fa5621ff2aea768eaf0a1fe81d8ac6085d6e0d846d22ba3207",
    "pocket": "6006607d1a30c7384ccdbdd4d7b4f43bf5a54b33bffa86130024e85e8218cedc",
    "recall-quick": "dca8a06133b93014c14b418e7369bf1ba99c11c34f53884eeef34d6c6768fbb3",
    "transfer": "9eef79e78316e03898e1ddb3393c22986ea414799f0d7c5e9004ece52cdeb106",
}


def test_the_identities_of_the_suites_of_the_package_do_not_change():
    """Results that exist carry them: another hash would measure every checkpoint anew."""
    assert {name: load_suite(name).sha256 for name in suite_names()} == PACKAGED


def test_the_identity_of_a_suite_with_files_of_its_own_does_not_change(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "capitals.yaml").write_text("task: capitals\n")
    (tmp_path / "mine.py").write_text("# a task\n")
    (tmp_path / "mine.yaml").write_text(EVERYTHING)
    suite = load_suite(tmp_path / "mine.yaml")
    assert list(suite.protocols) == ["recall", "language", "harness", "bigbench", "decode"], (
        "not in the order of the file"
    )
    assert suite.sha256 == "3550e89313426d22c84f28a838e0f8e9bd8a0463624559db22aa311bb4588496"


EVERYTHING = """
name: everything
description: not part of the identity
batch_tokens: 4096
adapt: {steps: 5, pairs: [1, 2]}
language: {tokens: 100, sequence_length: 10}
harness: {local: [capitals], folder: own}
decode: {contexts: [8]}
bigbench: {tasks: [winowhy], limit: 3}
recall:
  - {task: mine.py, pairs: [1], lengths: [64], queries: 10}
  - {task: niah, pairs: [1], gaps: [0], queries: 10, options: {haystack: unseen}, vary: {depth: [0, 1]}}
"""
