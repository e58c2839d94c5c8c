"""The average of the weights of several checkpoints of a run, as a run folder of its own that holds weights only.

Averages of checkpoints at a constant learning rate come near the loss of a cooldown without training one (arXiv 2203.05482,
arXiv 2306.03241).
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ...evals.layout import complete_checkpoints
from ...models.common.errors import UserError
from ...models.common.files import sha256_file, sha256_json, write_json, write_text
from ...models.common.run_layout import COMPLETE, MODEL, checkpoint_name
from ...models.pretrained import WEIGHTS
from ..config import RunName, parse_config, save_config
from ..run.folder import RunFolder
from ..run.identity import run_id
from ..run.lineage import AVERAGE, Lineage, Parent, segments_of
from .format import FORMAT


def average_weights(folders: Sequence[Path]) -> dict[str, Tensor]:
    """Average stored models of one architecture, in fp64; the result has the precision of the last one."""
    total: dict[str, Tensor] = {}
    for folder in folders:
        weights = load_file(folder / WEIGHTS)
        for name, weight in weights.items():
            total[name] = weight.double() if name not in total else total[name] + weight.double()
    return {name: (total[name] / len(folders)).to(weight.dtype) for name, weight in weights.items()}


def average_run(run: RunFolder, last: int, name: RunName | None = None) -> RunFolder:
    """Average the weights of the `last` newest checkpoints into a run folder beside that of `run`; returns it.

    It is evaluated and branched from (`--what weights`) like any run; its only checkpoint has the step of the newest one.

    Raises:
        UserError: fewer checkpoints than that, or less than two; one is damaged; the folder exists already.
    """
    stored = run.load_config()
    if last < 2:
        raise UserError(f"--last {last}: an average needs two checkpoints or more")
    checkpoints = list(complete_checkpoints(run.path))
    if len(checkpoints) < last:
        steps = ", ".join(str(record["step"]) for _, record in checkpoints) or "none"
        raise UserError(f"--last {last}: {run.path} has fewer complete checkpoints with weights, of steps {steps}")
    chosen = checkpoints[-last:]
    for folder, record in chosen:
        path, expected = folder / MODEL / WEIGHTS, record["sha256"][f"{MODEL}/{WEIGHTS}"]
        if not path.is_file() or sha256_file(path) != expected:
            raise UserError(f"{path} is missing or damaged: restore it, or average others")
    config = parse_config(stored.resolved() | {"name": name or f"{stored.name}-average-{last}"}, "the average")
    target = RunFolder(run.path.resolve().parent / config.name)
    if target.exists():
        raise UserError(f"{target.path} exists already: give the average another name (--name)")
    newest, record = chosen[-1]
    position = {"step": record["step"], "tokens": record["tokens"]}
    aside = RunFolder(target.path.with_name(f".{config.name}.partial"))  # complete or absent
    shutil.rmtree(aside.path, ignore_errors=True)
    aside.prepare(config.model_copy(update={"start_from": None}), run.data_folder())
    folder = aside.checkpoints / checkpoint_name(record["step"])
    shutil.copytree(newest / MODEL, folder / MODEL)
    save_file(average_weights([path / MODEL for path, _ in chosen]), folder / MODEL / WEIGHTS, {"format": "pt"})
    hashes = {f"{MODEL}/{path.name}": sha256_file(path) for path in sorted((folder / MODEL).iterdir())}
    write_json(folder / COMPLETE, {"format": FORMAT} | position | {"sha256": hashes})
    write_text(aside.latest_file, f"{folder.name}\n")
    content = sha256_json([entry["sha256"][f"{MODEL}/{WEIGHTS}"] for _, entry in chosen])
    parent = Parent(
        run=run.path.resolve().name,
        path=str(run.path.resolve()),
        run_id=run_id(run.path),
        what=AVERAGE,
        content=content,
        averaged=tuple(entry["step"] for _, entry in chosen),
        **position,
    )
    segments = tuple(segments_of(run.path, stored))
    Lineage(parent=parent, root=content, segments=segments).write(aside.path)
    write_json(aside.finished_file, position)
    save_config(config, aside.config_file)
    os.rename(aside.path, target.path)
    return target
