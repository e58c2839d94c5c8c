"""Resolution of a command's first argument: a recipe to start, or a run folder to resume."""

from pathlib import Path

from ...pipeline.config import RunConfig, apply_overrides, load_config, parse_config
from ...pipeline.run.folder import RunFolder


def resolve_target(target: str, overrides: list[str] | None, runs: Path) -> tuple[RunConfig, Path]:
    """The configuration that `target` and the overrides give, and the folder that holds the run's folder.

    Raises:
        UserError: neither a recipe nor a run folder, or a bad override.
    """
    run = RunFolder(target)
    if not run.exists():
        return load_config(target, overrides), runs
    stored = run.load_config().resolved()
    return parse_config(apply_overrides(stored, overrides or [], target), target), run.path.parent


def data_root(target: str, data: Path | None) -> Path:
    """The folder of the datasets: `data` if not None, else that of the run in `target`, else `./data`."""
    if data is not None:
        return data
    run = RunFolder(target)
    return run.data_folder().parent if run.data_file.is_file() else Path("data")
