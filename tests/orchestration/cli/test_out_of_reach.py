"""Commands that need MLflow, Ray or a web server, where those do not answer or are not installed: one line, exit code 2."""

import sys
from pathlib import Path

import pytest
import yaml

from echo_lm.models.common.files import write_json
from echo_lm.orchestration.cli.main import main
from echo_lm.orchestration.studies.config import StudyConfig
from echo_lm.orchestration.studies.planner import make_plan
from tests.helpers.tiny_sweep import sweep_file

NOBODY = "127.0.0.1:9"
STUDY = {
    "name": "toy",
    "question": "Does it work?",
    "families": ["transformer"],
    "sizes": ["1m"],
    "budgets": {"tokens": [4e6]},
    "learning_rate": {"value": 2e-3, "exponent": -0.25},
    "batch": {"value": 16384},
    "train": {"sequence_length": 64},
    "hardware": {"memory_gib": 80, "tflops": 1.0},
    "fit": {"hold_out": []},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, data_root) -> Path:
    """A folder with a run, a study, a sweep and the data."""
    place = tmp_path_factory.mktemp("place")
    (place / "data").symlink_to(data_root)
    run = place / "runs" / "small"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"train": {"steps": 20}}))
    write_json(run / "environment.json", {"run_id": "small-1"})
    data = {"name": "python-stdlib-sample", "sources": [{"kind": "python-stdlib", "limit_documents": 60}]}
    data |= {"tokenizer": {"vocab_size": 512}, "heldout_fraction": 0.1}
    (place / "toy.yaml").write_text(yaml.safe_dump(STUDY | {"data": data}))
    study = StudyConfig.model_validate(yaml.safe_load((place / "toy.yaml").read_text()))
    write_json(place / "studies" / "toy" / "plan.json", make_plan(study).model_dump(mode="json"))
    sweep_file(place)
    return place


def complaint(monkeypatch, capsys, place: Path, arguments: str) -> str:
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["echo-lm", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 2, error
    (line,) = [line for line in error.splitlines() if line.startswith("echo-lm: ")]
    assert error.endswith(line)
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        f"run smoke --address {NOBODY}",
        f"prepare smoke --data new --address {NOBODY}",
        f"study run toy.yaml --address {NOBODY}",
        f"sweep run tiny.yaml --address {NOBODY}",
        f"submit smoke --address http://{NOBODY}",
        f"track runs/small --tracking-uri http://{NOBODY}",
        f"study track toy --uri http://{NOBODY}",
    ],
)
def test_what_does_not_answer(monkeypatch, capsys, place, arguments):
    line = complaint(monkeypatch, capsys, place, arguments)
    assert "does not answer" in line or "no Ray cluster answers" in line or "did not take the job" in line


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("ray", "study run toy.yaml --ray"),
        ("ray", "sweep run tiny.yaml --ray"),
        ("ray", "submit smoke"),
        ("mlflow", "track runs/small"),
        ("mlflow", "study track toy"),
        ("uvicorn", "serve"),
    ],
)
def test_what_is_not_installed(monkeypatch, capsys, place, package, arguments):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert f"{package} is not installed here" in complaint(monkeypatch, capsys, place, arguments)
