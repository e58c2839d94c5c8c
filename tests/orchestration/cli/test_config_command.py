"""`echo-lm config show` and `config schema`."""

import json

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from echo_lm.evals.config import SUITE_FOLDER
from echo_lm.evals.sweeps.config import SWEEP_FOLDER
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.main import app
from tests.test_layout import ROOT

FILES = {
    "recipe": [*(ROOT / "pipeline/recipes").glob("*.yaml")],
    "suite": [*SUITE_FOLDER.glob("*.yaml")],
    "sweep": [*SWEEP_FOLDER.glob("*.yaml")],
    "study": [*(ROOT / "orchestration/studies/configs").glob("*.yaml")],
}


def output(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["config", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture(scope="module", params=FILES)
def validator(request):
    schema = json.loads(output("schema", request.param))
    jsonschema.Draft202012Validator.check_schema(schema)
    return request.param, jsonschema.Draft202012Validator(schema)


def test_files_of_the_package_fit_their_schema_and_a_misspelt_key_does_not(validator):
    kind, check = validator
    assert FILES[kind]
    for path in FILES[kind]:
        content = yaml.safe_load(path.read_text())
        assert [error.message for error in check.iter_errors(content)] == [], path
        assert list(check.iter_errors({**content, "nmae": 1})), path


def test_the_schema_of_a_recipe_knows_the_keys_of_models():
    check = jsonschema.Draft202012Validator(json.loads(output("schema")))
    recipe = yaml.safe_load((ROOT / "pipeline/recipes/quickstart.yaml").read_text())
    recipe["model"] = {"preset": "echo-1m", "ska": {"rank": 16}}
    assert check.is_valid(recipe)
    recipe["model"]["ska"]["rnak"] = 16
    assert not check.is_valid(recipe)


def test_one_key_is_explained_in_words_and_a_section_as_a_table(tmp_path):
    shown = output("show", "quickstart", "train.steps", "train.steps=9")
    assert shown.startswith("train.steps = 9\nNumber of updates")
    assert "set by: command line" in shown
    table = output("show", "quickstart", "run", "--changed")
    assert "run.checkpoint_every" in table
    assert "run.threads" not in table, "it has its default"
    assert output("show", "quickstart", "evaluation.parallel", "--changed") == "every key has its default\n"
    output("schema", "suite", "--out", str(tmp_path / "suite.json"))
    assert json.loads((tmp_path / "suite.json").read_text())["properties"]["recall"]


def test_a_run_folder_is_explained_too(tmp_path):
    (tmp_path / "config.yaml").write_text((ROOT / "pipeline/recipes/smoke.yaml").read_text())
    assert (
        f"set by: {tmp_path / 'config.yaml'}" in output("show", str(tmp_path), "train.steps").replace("\n", "")[:2000]
    )


def test_what_is_not_there_is_one_line():
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        output("show", "quickstar")
