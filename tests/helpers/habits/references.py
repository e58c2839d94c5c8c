"""Losses of undisturbed runs, which those of the played ones must equal; computed once for all sequences of a trial."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.models.common.files import write_json
from echo_lm.models.common.run_layout import EVENTS
from echo_lm.pipeline.config import RunConfig, load_config
from echo_lm.pipeline.run.amend import amend
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.trainings import train_all

from .checks import References
from .world import LONGER, RECIPE, STEPS, TOPOLOGIES


def dataset(folder: Path) -> Path:
    """Prepare the recipe's dataset in `folder`; returns the folder."""
    prepare(load_config("smoke").data, folder)
    return folder


def undisturbed(place: Path, data: Path, topologies: list[tuple[int, int]]) -> References:
    """Train the recipe with each (workers, ZeRO stage): to its end and then on, and with the later end from the beginning."""

    def losses(topology: tuple[int, int]) -> dict[str, list[float]]:
        workers, stage = topology
        folder = place / f"{workers}-{stage}"
        for name in ("end", "before"):
            config = reference_config(workers, stage, STEPS if name == "end" else LONGER)
            RunFolder(folder / name).prepare(config, data / config.data.name)
        train_all([folder / name for name in ("end", "end", "before")], workers, before=extend_where_finished)
        found = {
            name: [event["loss"] for event in steps(read_events(folder / name / EVENTS))] for name in ("end", "before")
        }
        return found | {"": found["end"][:STEPS]}

    with ThreadPoolExecutor(len(topologies)) as pool:
        return dict(zip(topologies, pool.map(losses, topologies), strict=True))


def reference_config(workers: int, stage: int, last: int) -> RunConfig:
    return load_config("smoke", [*RECIPE, f"run.workers={workers}", f"run.zero_stage={stage}", f"train.steps={last}"])


def extend_where_finished(folder: Path) -> None:
    """Amend a reference that came to its end, for the extension at the end."""
    run = RunFolder(folder)
    if run.finished():
        execution = run.load_config().run
        amend(run, reference_config(execution.workers, execution.zero_stage, LONGER))


def references_file(path: Path, data: Path) -> Path:
    """Write the references of all topologies to `path`, if it is missing; returns it."""
    if not path.is_file():
        losses = undisturbed(path.with_name("undisturbed"), data, list(TOPOLOGIES))
        write_json(path, [[key, values] for key, values in losses.items()])
    return path


def read_references(path: Path) -> References:
    return {tuple(key): values for key, values in json.loads(path.read_text())}
