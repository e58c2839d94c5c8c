"""Amendments: changes of what a run trains, from its newest checkpoint on, each recorded as a segment of its own."""

from typing import Any

from ...data_prep.loading.dataset import Dataset
from ...models.common.errors import UserError
from ...models.common.validation import differences
from ..batches import loader_of_segments, stages_of
from ..checkpoint.format import set_damaged_aside
from ..checkpoint.restore import newest_state
from ..config import AMENDABLE_SECTIONS, RunConfig, save_config
from .folder import RunFolder
from .lineage import AVERAGE, Lineage, Segment, read_lineage, segments_of
from .start import check_cooldown, same_rates
from .supervision import record_event

Changes = dict[str, list[Any]]  # old and new value, by dotted key


def amend(run: RunFolder, config: RunConfig) -> tuple[int, Changes]:
    """Amend a run: it continues with `config` from its newest whole checkpoint; a finished run continues to the new end.

    Called under the run's lock.

    Returns:
        the step, and the old and new value of each key that changes; nothing is done if there is none.

    Raises:
        UserError: a key that cannot change on the way; an end before the step; a cooldown or a mixture that does not fit.
    """
    stored, lineage = run.load_config(), read_lineage(run.path)
    if lineage and lineage.parent and lineage.parent.what == AVERAGE:
        raise UserError(
            f"{run.path} is an average of weights: begin a run from it with `echo-lm branch {run.path} --what weights name=...`"
        )
    changes = {key: [old, new] for key, old, new in differences(stored.identity_fields(), config.identity_fields())}
    for key in changes:
        if key.split(".")[0] not in AMENDABLE_SECTIONS:
            raise UserError(
                f"{key} of {run.path} cannot change on the way (--amend changes {', '.join(AMENDABLE_SECTIONS)}): begin a run of "
                f"its own with `echo-lm branch {run.path} name=...`"
            )
    set_damaged_aside(run)
    step = newest_state(run).step
    if not changes:
        return step, {}
    if config.train.steps <= step:
        raise UserError(
            f"train.steps={config.train.steps} does not lie after step {step}, which {run.path} has reached: branch from an "
            f"earlier one with `echo-lm branch {run.path} --step N name=...`"
        )
    check_cooldown(config, step, unchanged=same_rates(stored.train, config.train, step))
    segments = [*segments_of(run.path, stored), Segment.of(step, config)]
    stages = stages_of([(segment.step, segment.run_config()) for segment in segments])
    loader_of_segments(Dataset.open(run.data_folder()), [(stage.step, stage.config) for stage in stages])
    parent, root = (lineage.parent, lineage.root) if lineage else (None, None)
    Lineage(parent=parent, root=root, segments=tuple(segments)).write(run.path)
    run.finished_file.unlink(missing_ok=True)
    save_config(config, run.config_file)
    record_event(run, "amend", step=step, changes=changes)
    return step, changes
