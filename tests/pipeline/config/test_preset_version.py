"""What a preset's name means may change; runs and studies that exist keep what it meant."""

import hashlib
import json

import pytest
import yaml

from echo_lm.models import preset
from echo_lm.models.common.errors import UserError
from echo_lm.models.common.files import read_json, write_json
from echo_lm.models.presets import PAPER
from echo_lm.orchestration.launch.target import resolve_target
from echo_lm.orchestration.studies.config import load_study
from echo_lm.orchestration.studies.folder import StudyFolder
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.pipeline.config import load_config
from echo_lm.pipeline.run.folder import RunFolder


def digest(config) -> str:
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]


def test_versions_differ_in_the_ska_layers_alone():
    first, second = (preset("echo-10m", preset_version=version) for version in (1, 2))
    assert preset("echo-10m") == second
    changed = {"key_shift": 1, "value_shift": 1, "tied_start": True}
    assert second == first.model_copy(update={"ska": first.ska.model_copy(update=changed)})
    assert preset("transformer-10m", preset_version=1) == preset("transformer-10m")
    assert all(preset(name, preset_version=1) == preset(name) for name in PAPER)


def test_version_1_is_what_the_names_meant_for_ever():
    assert {name: digest(preset(name, preset_version=1)) for name in ("echo-1m", "echo-180m")} == {
        "echo-1m": "968ebb8690339535",
        "echo-180m": "d84d1147b1179726",
    }


def test_a_recipe_gets_the_latest_and_a_stored_run_its_own(tmp_path):
    config = load_config("smoke", ["name=exp"])
    assert config.model.preset_version == 2
    run = RunFolder(tmp_path / "exp")
    run.prepare(config, tmp_path)
    assert run.load_config() == config
    stored = yaml.safe_load(run.config_file.read_text())
    assert stored["model"].pop("preset_version") == 2
    run.config_file.write_text(yaml.safe_dump(stored))  # as written before there were versions
    old = run.load_config()
    assert old.model.resolve(512) == preset("echo-1m", preset_version=1, vocab_size=512, **old.model.model_extra)
    with pytest.raises(UserError, match=r"another model.preset_version \(stored .*, asked 2\)"):
        run.check(config)
    run.check(load_config("smoke", ["name=exp", "model.preset_version=1"]))
    # The same recipe goes on with the run, unless it names another version.
    assert resolve_target("smoke", ["name=exp"], tmp_path)[0] == old
    assert resolve_target("smoke", ["name=exp", "model.preset_version=2"], tmp_path)[0] == config
    assert resolve_target("smoke", ["name=new"], tmp_path)[0].model.preset_version == 2


def test_an_unknown_version_is_one_line():
    with pytest.raises(UserError, match="preset_version is 3: choose one of 1, 2"):
        load_config("smoke", ["model.preset_version=3"])


def test_a_study_gets_the_latest_and_a_stored_plan_its_own(tmp_path):
    assert load_study("study-code-h100").preset_version == 1
    study = load_study("study-pocket")
    assert study.preset_version == 2
    plan = make_plan(study)
    cell = next(cell for cell in plan.cells if cell.family == "echo")
    assert cell.architecture(1024).ska.key_shift == 1
    folder = StudyFolder(tmp_path / "pocket")
    write_json(folder.plan_file, plan.model_dump(mode="json"))
    stored = read_json(folder.plan_file)
    del stored["study"]["preset_version"]
    for old in stored["cells"]:
        old["model"].pop("preset_version", None)
    write_json(folder.plan_file, stored)
    assert load_study(folder.path).preset_version == 1
    stored_plan = folder.load_plan()
    old = next(cell for cell in stored_plan.cells if cell.family == "echo")
    assert old.architecture(1024).ska.key_shift == 0
    models = [[cell.model for cell in cells] for cells in (make_plan(load_study(folder.path)).cells, stored_plan.cells)]
    assert models[0] == models[1]
