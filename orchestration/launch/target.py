"""Resolution of a command's first argument: a recipe to start, or a run folder to resume."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ...models.common.errors import UserError
from ...pipeline.config import RunConfig, RunName, apply_overrides, load_config, parse_config
from ...pipeline.run.events import stopped_at
from ...pipeline.run.folder import RunFolder


def resolve_target(target: str, overrides: list[str] | None, runs: Path) -> tuple[RunConfig, RunFolder]:
    """The configuration that `target` and the overrides give, and the run's folder.

    If `target` is a folder, it is the run's folder even if it was moved or renamed; its name becomes the run's name if that is
    valid. Where an earlier command was to stop (`run.stop_step`, `run.time_limit`) is forgotten. A recipe that names no version
    of its preset gets that of the run which it goes on with.

    Raises:
        UserError: neither a recipe nor a run folder, a bad override, or another name for an existing folder.
    """
    run = RunFolder(target)
    if not run.exists():
        config = load_config(target, overrides)
        run = RunFolder(runs / config.name)
        if run.exists():  # a resumed run keeps the preset's meaning from when it began
            config = load_config(target, overrides, preset_version=run.load_config().model.preset_version)
        return config, run
    stored = run.load_config().resolved()
    stored["run"] |= {"stop_step": None, "time_limit": None}  # where an earlier command was to stop
    folder_name = run.path.resolve().name
    if is_name(folder_name):
        stored["name"] = folder_name
    config = parse_config(apply_overrides(stored, overrides or [], target), target)
    if config.name != stored["name"]:
        raise UserError(
            f"name={config.name}: {run.path} is a run already, and its folder's name is its name; move or copy the folder, "
            "then name that"
        )
    return config, run


def is_name(text: str) -> bool:
    """Whether a run may have this name."""
    try:
        TypeAdapter(RunName).validate_python(text)
    except ValidationError:
        return False
    return True


def data_root(target: str, data: Path | None) -> Path:
    """The folder of the datasets: `data` if not None, else that of the run in `target`, else `./data`."""
    if data is not None:
        return data
    run = RunFolder(target)
    return run.data_folder().parent if run.data_file.is_file() else Path("data")


def how_to_go_on(run: RunFolder, config: RunConfig, command: str) -> str:
    """How to continue a stopped run, as text: not by the same command if that names the step at which it stopped."""
    stop_step = config.run.stop_step
    if stop_step is not None and stopped_at(run.events_file) == stop_step:
        return f"run.stop_step={stop_step} is reached, `echo-lm {command} {run.path}` goes on to the end"
    return "the same command goes on"
