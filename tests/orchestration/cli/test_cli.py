"""The command line as a user meets it: help, one-line mistakes with exit code 2, nothing lost."""

import json
import shutil

import pytest

from echo_lm.orchestration.cli.main import main
from tests.helpers import warm

COMMANDS = (
    "run",
    "prepare",
    "data",
    "compile",
    "train",
    "eval",
    "generate",
    "status",
    "track",
    "models",
    "study",
    "serve",
)


@pytest.fixture
def echo_lm(monkeypatch, capsys, tmp_path):
    """`echo_lm(*arguments)` runs the command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["echo-lm", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_error:
            code = int(exit_error.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_help(echo_lm, command):
    code, out, _ = echo_lm(command, "--help")
    assert code == 0
    assert len(out.splitlines()) > 6


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "quikstart"), "did you mean 'quickstart'"),
        (("train", "smoke", "train.stepz=5"), "unknown key train.stepz: did you mean 'steps'"),
        (("train", "smoke", "train.steps=soon"), "train.steps='soon' is wrong"),
        (("prepare", "smoke", "data.sources=[]"), "data.sources"),
        (("prepare", "smoke", "data.sources=[{kind: text, name: mine, paths: [nowhere/*.txt]}]"), "nowhere"),
        (("compile", "smoke", "--device", "h2"), "--device: unknown GPU 'h2': one of a10, a100,"),
        (("status",), "there are no runs below runs"),
        (("status", "nothing"), "nothing is not a run folder"),
        (("eval", "nothing"), "nothing is not a run folder"),
        (("generate", "nothing", "--prompt", "x"), "nothing is not a run folder"),
        (("track", "nothing"), "nothing is not a run folder"),
        (("models", "eco-50m"), "did you mean echo-50m"),
        (("prepare", "smoke", "--verify"), "manifest.json"),
        (("data", "show", "smoke"), "manifest.json"),
        (("serve",), "there is no folder runs: name the one that holds the runs (--runs)"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(echo_lm, arguments, expected):
    code, _, err = echo_lm(*arguments)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_damaged_data_is_refused_before_training(echo_lm, tmp_path, data_root):
    root = tmp_path / "data"
    shutil.copytree(data_root, root)
    folder = root / "python-stdlib-sample"
    shard = sorted(folder.glob("train-*.bin"))[0]
    intact = shard.read_bytes()
    shard.write_bytes(intact[:100] + bytes([intact[100] ^ 1]) + intact[101:])
    code, _, err = echo_lm("train", "smoke", "run.workers=1", "--data", root)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert shard.name in err
    shard.write_bytes(intact)

    tokenizer = folder / "tokenizer.json"
    changed = json.loads(tokenizer.read_text())
    changed["version"] = "1.0 "
    tokenizer.write_text(json.dumps(changed))
    code, _, err = echo_lm("train", "smoke", "run.workers=1", "--data", root)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "tokenizer" in err


def test_unknown_suite_is_refused_before_training(echo_lm, data_root):
    code, _, err = echo_lm("train", "smoke", "evaluation.suites=[recal-quick]", "--data", data_root)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "recall-quick" in err


def test_dataset_of_another_configuration_is_refused(echo_lm, data_root):
    code, _, err = echo_lm("prepare", "smoke", "data.tokenizer.vocab_size=600", "--data", data_root)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "vocab_size" in err


def test_train_status_generate_and_resume(echo_lm, tmp_path, data_root):
    arguments = ("train", "smoke", "run.workers=1", "train.steps=4", "run.checkpoint_every=2", "--data", data_root)
    with warm.forking():
        code, out, err = echo_lm(*arguments)
    assert code == 0, err
    assert "train: 4/4 steps" in out
    code, out, _ = echo_lm("status")
    assert code == 0
    assert "finished" in out
    assert "4/4" in out
    code, out, _ = echo_lm("train", "runs/smoke")
    assert code == 0
    assert "training is complete; nothing to do" in out
    assert not (tmp_path / "data").exists()  # the run knows where its data lies
    code, out, _ = echo_lm("generate", "runs/smoke", "--prompt", "def ", "--tokens", "5")
    assert code == 0
    assert out.startswith("def ")
    code, out, _ = echo_lm("eval", "runs/smoke", "--step", "4")
    assert code == 0
    assert (tmp_path / "runs/smoke/evals/step_00000004/language.json").is_file()
    code, _, err = echo_lm("eval", "runs/smoke", "--step", "3")
    assert code == 2
    assert "it has 2, 4" in err
