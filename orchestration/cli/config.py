"""`echo-lm config`: what every key of a recipe is set to, where and why; JSON schemas for editors."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ...models.common.config import Config
    from ...pipeline.config.explain import KeyRow

config_app = typer.Typer(
    name="config",
    help="Configuration: resolved values with their origin and meaning, JSON schemas.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class File(StrEnum):
    """The kinds of YAML files that Echo-LM reads."""

    recipe = "recipe"
    data = "data"
    suite = "suite"
    sweep = "sweep"
    study = "study"


@config_app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe name, a recipe file (.yaml), or the folder of a run.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="A key or section such as train.steps or model.ska; dotted overrides as train.steps=200."),
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only keys that differ from their defaults.")] = False,
) -> None:
    """The value of each key, its default, where it was set and what it means."""
    from ...pipeline.config.explain import explain_config, rows_below
    from ...pipeline.run.folder import RunFolder
    from ..progress.bars import console

    folder = RunFolder(recipe)
    overrides = [argument for argument in arguments or [] if "=" in argument]
    keys = [argument for argument in arguments or [] if "=" not in argument]
    everything = explain_config(str(folder.config_file) if folder.exists() else recipe, overrides)
    rows = [row for key in keys for row in rows_below(everything, key)] if keys else everything
    if changed:
        rows = [row for row in rows if row.value != row.default]
    if not rows:
        console.print("every key has its default")
    elif len(rows) == 1:
        console.print(_details(rows[0]), markup=False, highlight=False)
    else:
        console.print(_table(rows))


@config_app.command()
def schema(
    file: Annotated[File, typer.Argument(help="Which kind of file.")] = File.recipe,
    out: Annotated[Path | None, typer.Option(help="File to write; printed if left out.")] = None,
) -> None:
    """The JSON schema of a kind of YAML file, with which editors complete and check it."""
    from ...models.common.files import write_text
    from ...pipeline.config.schema import json_schema

    text = json.dumps(json_schema(_class_of(file)), indent=2) + "\n"
    if out:
        write_text(out, text)
    else:
        print(text, end="")


def _class_of(file: File) -> "type[Config]":
    from ...evals.config import Suite
    from ...evals.sweeps.config import RecallSweep
    from ...pipeline.config import RunConfig
    from ..preparation.data_recipe import DataRecipe
    from ..studies.config import StudyConfig

    classes = {
        File.recipe: RunConfig,
        File.data: DataRecipe,
        File.suite: Suite,
        File.sweep: RecallSweep,
        File.study: StudyConfig,
    }
    return classes[file]


def _table(rows: "list[KeyRow]"):
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("key", "value", "default", "set by", "meaning"):
        table.add_column(title, overflow="fold", no_wrap=title == "key")
    for row in rows:
        default = "required" if row.required else _yaml(row.default)
        table.add_row(row.key, _yaml(row.value), default, row.origin, row.meaning)
    return table


def _details(row: "KeyRow") -> str:
    default = "none, it is required" if row.required else _yaml(row.default)
    return f"{row.key} = {_yaml(row.value)}\n{row.meaning}\ndefault: {default}\nset by: {row.origin}"


def _yaml(value: object) -> str:
    """A value on one line, as a recipe would state it."""
    return json.dumps(value, ensure_ascii=False)
