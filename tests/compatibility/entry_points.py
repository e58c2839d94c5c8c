"""Everything that the tests of this folder take from the package, in one place, since modules move.

The functions that compute hashes repeat those of `tests/fixtures/written_by_94d8ee0/write_expected.py`, which runs on the
commit that wrote the fixture and keeps the module paths of that commit.
"""

import sys
from pathlib import Path

import torch

from echo_lm.data_prep.preparing.manifest import config_sha256
from echo_lm.evals.config import load_suite, suite_names
from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.runs import runs_of
from echo_lm.models import from_pretrained
from echo_lm.models.common.files import read_json, sha256_json
from echo_lm.orchestration.cli.main import app
from echo_lm.orchestration.dashboard.app import make_app
from echo_lm.orchestration.studies.config import load_study, study_names
from echo_lm.orchestration.studies.export import import_study
from echo_lm.orchestration.studies.folder import StudyFolder
from echo_lm.orchestration.studies.learning_rate import given_rule
from echo_lm.orchestration.studies.plan import cell_config
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.run import stored_rule
from echo_lm.pipeline.config import load_config, recipe_names
from echo_lm.pipeline.run.report import write_report

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "written_by_94d8ee0"
PUBLISHED_STUDY = ROOT / "docs" / "results" / "study-code-h100" / "study.json"

# How a new process runs the command line, a recall sweep, and the report of one.
COMMAND_LINE = [sys.executable, "-c", "from echo_lm.orchestration.cli.main import main; main()"]
RECALL_SWEEP = [*COMMAND_LINE, "sweep", "run"]
RECALL_REPORT = [*COMMAND_LINE, "sweep", "report"]
RECALL_SWEEPS = ROOT / "evals" / "sweeps" / "configs"
RECALL_ROWS = ROOT / "benchmarks" / "results" / "tables"

command_line = app
read = read_json
write_run_report = write_report
dashboard = make_app


def run_identity(recipe: str) -> str:
    """Return the hash of what a run trains, for a recipe that comes with the package or a YAML file, as it goes on."""
    return load_config(recipe, preset_version=1).identity()


def dataset_hash(recipe: str) -> str:
    """Return the hash of the dataset that a recipe prepares."""
    return config_sha256(load_config(recipe).data)


def suite_hash(suite: str) -> str:
    """Return the hash by which results of an evaluation suite are recognised."""
    return load_suite(suite).sha256


def study_hash(study: str) -> str:
    """Return a hash over the names and identities of all cells of a study."""
    loaded = load_study(study, preset_version=1)
    rule = given_rule(loaded.learning_rate, loaded.families)
    cells = make_plan(loaded).cells
    return sha256_json({cell.name: cell_config(loaded, cell, rule).identity() for cell in cells})


def recall_hash(sweep: str) -> str:
    """Return a hash over the ids of all runs of a recall sweep."""
    path = Path(sweep) if sweep.endswith(".yaml") else RECALL_SWEEPS / f"{sweep}.yaml"
    return sha256_json(sorted(run.id for run in runs_of(load_sweep(path))))


# For each kind of hash in `expected/identities.json`, the function that computes it.
HASHES = {
    "runs": run_identity,
    "datasets": dataset_hash,
    "suites": suite_hash,
    "studies": study_hash,
    "recall runs": recall_hash,
}
# Names of what comes with the package, by the same kinds.
PACKAGED = {
    "runs": recipe_names,
    "datasets": recipe_names,
    "suites": suite_names,
    "studies": study_names,
    "recall runs": lambda: [path.stem for path in RECALL_SWEEPS.glob("*.yaml")],
}


def recall_run_ids(sweep: Path) -> set[str]:
    """Return the ids of all runs of a recall sweep."""
    return {run.id for run in runs_of(load_sweep(sweep))}


def imported_study(path: Path, folder: Path) -> list[tuple[str, str, str]]:
    """Import an exported study into `folder`; return name, stored identity and identity computed today of each finished cell."""
    study = StudyFolder(folder)
    import_study(path, study)
    plan = study.load_plan()
    rules = {"sweep": given_rule(plan.study.learning_rate, plan.study.families), "main": stored_rule(study)}
    return [
        (result.cell.name, result.identity, cell_config(plan.study, result.cell, rules[result.cell.kind]).identity())
        for result in study.results(plan)
    ]


@torch.no_grad()
def logits_of(model: Path, tokens: list[int]) -> torch.Tensor:
    """Return the logits `[tokens, vocabulary]` of a stored model."""
    return from_pretrained(model)(torch.tensor([tokens]))[0]
