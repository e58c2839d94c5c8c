"""The command line of Echo-LM: joins the commands; a `UserError` becomes one line and exit code 2."""

import sys

import typer

from ...models.common.errors import UserError, not_installed
from ...models.common.files import FULL
from .average import average
from .branch import branch
from .checkpoint import checkpoint
from .compile import compile
from .config import config_app
from .data import data_app
from .evaluate import evaluate
from .generate import generate
from .models import models
from .note import note
from .prepare import prepare
from .run import run
from .serve import serve
from .status import status
from .study import study_app
from .submit import submit
from .sweep import sweep_app
from .track import track
from .train import train

app = typer.Typer(
    name="echo-lm",
    help="Pretrain constant-memory language models: raw text to trained Echo models, with evaluations beside the training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(config_app)
app.add_typer(data_app)
app.add_typer(study_app)
app.add_typer(sweep_app)
for command in (run, submit, prepare, compile, train, branch, checkpoint, average):
    app.command()(command)
app.command("eval")(evaluate)
for command in (generate, models, status, serve, note, track):
    app.command()(command)


def main() -> None:
    """Entry point of `echo-lm`."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"echo-lm: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (missing := not_installed(error)) is None:
            raise
        print(f"echo-lm: {missing}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = f" at {error.filename}" if error.filename else ""
        print(f"echo-lm: no space left on the disk{where}: free some and run the same command again", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("echo-lm: interrupted; the same command goes on from the last complete checkpoint", file=sys.stderr)
        sys.exit(130)
