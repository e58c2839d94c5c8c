"""The handbook is true: its commands run or say why not, its links lead somewhere, its lists are complete."""

import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer

from echo_lm.models.common.files import read_json
from echo_lm.orchestration.cli.main import app, main
from echo_lm.pipeline.config import load_config, recipe_names
from echo_lm.pipeline.run.events import read_events
from tests.helpers import warm
from tests.helpers.handbook import DOCUMENTS, ROOT, commands, inline_commands

COMMANDS = commands()
# The pages speak of the quickstart's steps; the workspace has a run of four.
IN_WORKSPACE = (("--step 600", "--step 4"), ("--suite recall-quick", "--suite language"))
# What makes the recipe of a reader one of seconds.
SMALLER = (
    ("vocab_size: 4096", "vocab_size: 512"),
    ("heldout_fraction: 0.02", "heldout_fraction: 0.1"),
    ("preset: echo-1m", "preset: echo-1m, d_model: 32"),
    ("batch_tokens: 4096, steps: 600", "batch_tokens: 512, steps: 20"),
    ("warmup_tokens: 80_000", "warmup_tokens: 2048"),
    ("workers: 2, checkpoint_every: 300", "workers: 1, checkpoint_every: 10"),
    ("[language, recall-quick]", "[language]"),
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, data_root):
    """A folder with `runs/quickstart` (recipe `smoke`, four steps), `mine.yaml` of the handbook and a file for it."""
    from echo_lm.orchestration.launch.train import train_run
    from echo_lm.pipeline.run.folder import RunFolder

    root = tmp_path_factory.mktemp("workspace")
    shutil.copytree(data_root, root / "data")
    overrides = ["name=quickstart", "train.steps=4", "run.checkpoint_every=2", "run.workers=1"]
    with warm.forking():
        train_run(load_config("smoke", overrides), RunFolder(root / "runs" / "quickstart"), root / "data")
    (root / "notes").mkdir()
    for number in range(40):
        lines = [
            f"Note {number}, line {line}: {number * line} sheep and {line} goats crossed the bridge."
            for line in range(9)
        ]
        (root / f"notes/{number}.txt").write_text("\n".join(lines))
    page = (ROOT / "docs/tutorials/your-own-data.md").read_text()
    recipe = re.search(r"```yaml\n(# mine.yaml\n.*?)```", page, re.S)[1]
    for said, done in SMALLER:
        assert recipe.count(said) == 1, said
        recipe = recipe.replace(said, done)
    (root / "mine.yaml").write_text(recipe)
    return root


def test_commands_were_found():
    assert len(COMMANDS) > 30
    assert {"docs/guides/operations.md", "docs/tutorials/your-own-data.md", "docker/README.md"} <= {
        command.page for command in COMMANDS
    }


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.note], ids=lambda command: command.name)
def test_what_is_not_run_here_says_where_it_is_run_or_why_not(command):
    if command.note == "tested":
        path, _, name = command.detail.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(), command
    else:
        assert len(command.detail.split()) >= 3, command


def test_the_other_commands_run(workspace, monkeypatch, capsys):
    """In the order of the pages, in one workspace, as a reader would."""
    monkeypatch.chdir(workspace)
    ran = 0
    for command in COMMANDS:
        if command.note:
            continue
        assert command.text.startswith("echo-lm "), f"{command.name}: {command.text} is neither run nor explained"
        text = command.text
        for said, done in IN_WORKSPACE:
            text = text.replace(said, done)
        monkeypatch.setattr("sys.argv", shlex.split(text))
        with warm.forking(), pytest.raises(SystemExit) as exit_info:
            main()
        assert not exit_info.value.code, f"{command.name}: {text}: {capsys.readouterr().err}"
        ran += 1
    assert ran >= 8
    assert read_json(workspace / "runs/mine/finished.json")["step"] == 20
    assert list(workspace.glob("runs/mine/evals/*/language.json"))
    assert "bits per byte" in (workspace / "runs/mine/report.md").read_text(), "the report has no evaluations"
    assert_listed(workspace / "runs/mine")


def assert_listed(run: Path) -> None:
    """Fails if a file of the run, or a field of its events, is not in docs/reference/files.md."""
    page = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    patterns = re.findall(r"^\| `([^`]+)` \|", page.partition("## Events")[0], re.M)
    patterns += ["figures/", "evals/figures/", ".*", "*/.*"]  # named in the text
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        inside = any(fnmatch(name, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)
        assert path.is_dir() or inside, f"{name} is not listed"
    for event in read_events(run / "events.jsonl"):
        assert [key for key in event if f"`{key}`" not in page] == [], event["kind"]


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.text.startswith("echo-lm")], ids=lambda command: command.name
)
def test_commands_are_understood(command):
    """Also those that are not run: the command, its arguments and its options exist."""
    assert_parses(command.text)


def test_commands_in_sentences_name_what_exists():
    inline = inline_commands()
    assert len(inline) > 20
    for page, text in inline:
        words = text.split()
        command_object = typer.main.get_command(app)
        for word in words[1:]:
            inner = getattr(command_object, "commands", {})
            if word not in inner:
                break
            command_object = inner[word]
        assert command_object.name != "echo-lm", f"{page}: {text}"
        options = {
            option for parameter in command_object.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in options | {"--help"}, f"{page}: {text}"


def assert_parses(text: str) -> None:
    """Fails if `echo-lm` would end with a usage error. Nothing is run."""
    command = typer.main.get_command(app)
    arguments = shlex.split(text)[1:]
    while hasattr(command, "commands"):
        assert arguments[0] in command.commands, text
        command = command.commands[arguments.pop(0)]
    command.make_context("echo-lm", arguments)


def test_the_reference_of_the_command_line_is_current(tmp_path):
    """Made by typer, as `make reference` does."""
    command = [sys.executable, "-m", "typer", "echo_lm.orchestration.cli.main", "utils", "docs", "--name", "echo-lm"]
    command += ["--title", "Command line", "--output", str(tmp_path / "cli.md")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (ROOT / "docs/reference/cli.md").read_text() == (tmp_path / "cli.md").read_text(), "run: make reference"


def test_every_recipe_is_described():
    page = (ROOT / "docs/guides/recipes.md").read_text(encoding="utf-8")
    assert [name for name in recipe_names() if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target
