"""The option `--amend`, which changes what a run trains, from its newest checkpoint on."""

from ...models.common.errors import UserError
from ...pipeline.config import RunConfig
from ...pipeline.run.amend import amend
from ...pipeline.run.folder import RunFolder
from ..progress.bars import console


def amend_run(run: RunFolder, config: RunConfig, *, trust: bool = False) -> None:
    """Record that the run goes on with `config`, and say what changes from which step on.

    Raises:
        UserError: there is no run yet, it is in use or belongs to another user, or the change is not possible.
    """
    if not run.exists():
        raise UserError(f"there is no run at {run.path} to amend: leave --amend out, or name the folder of a run")
    run.check_owner(trust=trust)
    with run.lock():
        step, changes = amend(run, config)
    for key, (old, new) in changes.items():
        console.print(f"{run.path}: from step {step} on {key} is {new} (was {old})", soft_wrap=True, markup=False)
