"""`echo-lm branch`: set up a run that begins from a checkpoint of another one."""

from pathlib import Path

from ...data_prep.loading.dataset import Dataset
from ...models.common.errors import UserError
from ...pipeline.config import RunConfig, apply_overrides, parse_config
from ...pipeline.preflight import check_tokenizer
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.start import branch_config, find_start
from ..preparation.prepare import dataset_is_complete


def branch_run(
    parent: Path, overrides: list[str], *, step: int | None, what: str, runs: Path | None, data: Path | None
) -> RunFolder:
    """Make the folder of a run that begins from a checkpoint of `parent`; it is trained by `train` or `run`.

    Args:
        overrides: must hold the branch's `name`.
        step: of the checkpoint; the newest if None.
        what: "weights", "optimizer" or "everything".
        runs: folder of the new run; that of the parent if None.
        data: folder of the datasets; that of the parent's if None.

    Raises:
        UserError: no such run, step or key; no name, or one that is taken; another architecture or tokenizer; an end that does
            not lie after the step, or a cooldown that does not fit.
    """
    source = RunFolder(parent)
    values = branch_config(source, step, what)
    if not any(override.startswith("name=") for override in overrides):
        raise UserError(f"the branch of {parent} needs a name of its own: add name=...")
    config = parse_config(apply_overrides(values, overrides, f"the branch of {parent}"), f"the branch of {parent}")
    run = RunFolder((runs or (parent.parent if parent.name else parent.resolve().parent)) / config.name)
    if run.exists():
        raise UserError(f"{run.path} is a run already: choose another name for the branch (name=...)")
    run.check(config)
    dataset = _dataset(source, config, data)
    if dataset_is_complete(config.data, dataset.parent):
        check_tokenizer(find_start(config, run.path).model, Dataset.open(dataset))
    with run.lock():
        run.prepare(config, dataset)
    return run


def _dataset(parent: RunFolder, config: RunConfig, data: Path | None) -> Path:
    """The folder of the branch's dataset, prepared or not."""
    if data is None and config.data == parent.load_config().data:
        return parent.data_folder()
    return (data or parent.data_folder().parent) / config.data.name
