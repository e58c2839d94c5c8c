"""The start of a run from a checkpoint (`start_from`), which is found, verified and linked into the run's own folder."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ...evals.layout import chosen_checkpoints, complete_checkpoints
from ...models import read_config
from ...models.common.cached_files import subfolders
from ...models.common.errors import UserError
from ...models.common.files import sha256_file, sha256_json, sync_folder, write_json
from ...models.common.run_layout import COMPLETE, CONFIG, ENGINE, MODEL, START
from ...models.config import ModelConfig
from ..checkpoint.format import FORMAT
from ..config import RunConfig, StartFromSection, TrainSection
from ..schedule import learning_rate_at
from .folder import RunFolder
from .identity import run_id
from .lineage import Lineage, Parent, Segment, read_lineage, segments_of

WEIGHT_FILES = ("model.safetensors", "config.json", "tokenizer.json")


class Start(NamedTuple):
    """The files that a run begins from.

    Attributes:
        files: their paths, by the name that they have in a checkpoint (`model/model.safetensors`).
        hashes: SHA-256 of each, by the same names.
        step, tokens: position that the new run goes on from; 0 unless everything is taken.
        parent: what is recorded of them.
        ancestors: the segments that led to the position.
        root: content of what the first of all segments began from; None for fresh weights.
    """

    files: dict[str, Path]
    hashes: dict[str, str]
    step: int
    tokens: int
    parent: Parent
    ancestors: list[Segment]
    root: str | None

    @property
    def model(self) -> Path:
        """The folder of the weights."""
        return self.files[f"{MODEL}/model.safetensors"].parent


def find_start(config: RunConfig, run_folder: Path) -> Start:
    """Find the checkpoint or weights that `config.start_from` names, for a run in `run_folder`; their files are not read yet.

    Raises:
        UserError: no such run, step or content; another architecture; or `config` ends before the position or cools down
            longer than is left after it.
    """
    source = config.start_from
    assert source is not None
    start = _weights(source) if source.weights is not None else _checkpoint(source, run_folder)
    stored = read_config(start.model)
    check_architecture(stored, config.model.resolve(stored.vocab_size), f"start_from: {start.model.parent}")
    if source.what == "everything":
        _check_horizon(start, config)
    return start


def check_architecture(stored: ModelConfig, configured: ModelConfig, where: str) -> None:
    """Check that weights of the architecture `stored`, which lie at `where`, fit the run's.

    Raises:
        UserError: naming the first field that differs.
    """
    if stored != configured:
        field = next(name for name in ModelConfig.model_fields if getattr(stored, name) != getattr(configured, name))
        raise UserError(
            f"{where} holds another architecture: its {field} is {getattr(stored, field)!r}, the run's is "
            f"{getattr(configured, field)!r}; choose another run name, or the same model"
        )


def set_up_start(run: RunFolder, config: RunConfig) -> None:
    """Verify what `config.start_from` names, link it into `start/`, and write `lineage.json`.

    Raises:
        UserError: see `find_start`; or a file is damaged.
    """
    start = find_start(config, run.path)
    for name, path in start.files.items():
        if not path.is_file() or sha256_file(path) != start.hashes[name]:
            raise UserError(f"start_from: {path} is missing or damaged: begin from another step, or restore it")
    aside = run.path / f".{START}.partial"
    for leftover in (aside, run.path / START):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, path in start.files.items():
        _link(path, aside / name)
    record = {"format": FORMAT, "step": start.step, "tokens": start.tokens, "sha256": start.hashes}
    write_json(aside / COMPLETE, record)
    os.rename(aside, run.path / START)
    sync_folder(run.path)
    own = Segment.of(start.step, config)
    before = [segment for segment in start.ancestors if segment.step < start.step]
    same = before and before[-1].identity == own.identity
    segments = (*before, *([] if same else [own]))
    Lineage(parent=start.parent, root=start.root, segments=segments).write(run.path)


def _checkpoint(source: StartFromSection, run_folder: Path) -> Start:
    """The checkpoint of a run as a start; if its content is given, it is also found where it was moved to."""
    assert source.run is not None
    folder, record = _find(source, run_folder)
    hashes: dict[str, str] = record["sha256"]
    if source.what == "weights":
        hashes = _of_weights(hashes)
    elif record.get("format") != FORMAT:
        raise UserError(f"start_from: {folder} was written by an earlier version of Echo-LM: take what=weights")
    elif not (folder / ENGINE).is_dir():
        raise UserError(
            f"start_from: {folder} holds weights only (run.keep_checkpoints): take what=weights or another step"
        )
    parent_folder = folder.parents[1]
    everything = source.what == "everything"
    ancestors = segments_of(parent_folder, RunFolder(parent_folder).load_config()) if everything else []
    parent = Parent(
        run=parent_folder.resolve().name,
        path=str(parent_folder.resolve()),
        run_id=run_id(parent_folder),
        step=record["step"],
        tokens=record["tokens"],
        what=source.what,
        content=sha256_json(hashes),
    )
    step, tokens, root = 0, 0, parent.content
    if everything:
        step, tokens, lineage = record["step"], record["tokens"], read_lineage(parent_folder)
        root = lineage.root if lineage else None
    return Start({name: folder / name for name in hashes}, hashes, step, tokens, parent, ancestors, root)


def _find(source: StartFromSection, run_folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find the folder and the record of the checkpoint that `start_from` names.

    Raises:
        UserError: it is not there, or has another content and no run beside it has the right one.
    """
    assert source.run is not None
    named, step = Path(source.run), None if source.step == "latest" else source.step
    there = (named / CONFIG).is_file()
    if source.content is None:
        if not there:
            raise UserError(f"start_from.run={named} holds no run: name a folder with a config.yaml")
        return chosen_checkpoints(named, step)[-1]
    for folder in dict.fromkeys([named, *subfolders(named.parent), *subfolders(run_folder.resolve().parent)]):
        for checkpoint, record in complete_checkpoints(folder):
            if step in (None, record["step"]) and source.content in _contents(record):
                return checkpoint, record
    fault = "holds no checkpoint of that content any more" if there else "is not there any more"
    raise UserError(
        f"start_from.run={named} {fault} ({source.content[:12]}), nor does a run beside it: name the run where it lies now"
    )


def _contents(record: dict[str, Any]) -> tuple[str, str]:
    """The content hashes of a checkpoint: of all its files, and of the weights alone."""
    hashes = record.get("sha256", {})
    return sha256_json(hashes), sha256_json(_of_weights(hashes))


def _of_weights(hashes: dict[str, str]) -> dict[str, str]:
    """The files of a checkpoint that make up the weights, without the settings for other libraries beside them."""
    return {name: hashes[name] for name in (f"{MODEL}/{file}" for file in WEIGHT_FILES) if name in hashes}


def _weights(source: StartFromSection) -> Start:
    """A folder of weights as a start."""
    assert source.weights is not None
    folder = Path(source.weights)
    files = {f"{MODEL}/{name}": folder / name for name in WEIGHT_FILES if (folder / name).is_file()}
    for name in WEIGHT_FILES[:2]:
        if f"{MODEL}/{name}" not in files:
            raise UserError(
                f"start_from.weights={folder} holds no {name}: name a folder such as model/ of a checkpoint"
            )
    weights = files[f"{MODEL}/{WEIGHT_FILES[0]}"]
    try:
        with safe_open(weights, framework="pt"):
            pass
    except SafetensorError as error:
        raise UserError(f"start_from.weights: {weights} is damaged or cut off ({error}): copy it again") from error
    hashes = {name: sha256_file(path) for name, path in files.items()}
    content = sha256_json(hashes)
    if source.content not in (None, content):
        raise UserError(
            f"start_from.weights={folder} has changed: its content is {content[:12]}, not {source.content[:12]}"
        )
    place = folder.resolve()
    parent = Parent(run=place.name, path=str(place), run_id=None, step=0, tokens=0, what="weights", content=content)
    return Start(files, hashes, 0, 0, parent, [], content)


def _check_horizon(start: Start, config: RunConfig) -> None:
    train = config.train
    if train.steps <= start.step:
        raise UserError(
            f"train.steps={train.steps} does not lie after step {start.step}, from which the run goes on: it counts from "
            "the beginning of the parent"
        )
    before = start.ancestors[-1].run_config().train
    check_cooldown(config, start.step, unchanged=same_rates(before, train, start.step))


def same_rates(before: TrainSection, after: TrainSection, step: int) -> bool:
    """Whether two configurations have the same learning rates after `step`."""
    return before.steps == after.steps and all(
        learning_rate_at(later, before) == learning_rate_at(later, after) for later in (step, before.steps - 1)
    )


def check_cooldown(config: RunConfig, step: int, *, unchanged: bool) -> None:
    """Check that the cooldown of a run begins after `step`, unless it goes on as before.

    Raises:
        UserError: it is longer than what is left.
    """
    train, left = config.train, config.train.steps - step
    if train.schedule == "warmup-stable-decay" and train.steps_of_decay > left and not unchanged:
        raise UserError(
            f"a cooldown of {train.steps_of_decay:,} steps does not fit into the {left:,} that are left after step {step:,}: "
            f"set train.decay_steps={left} or less, or raise train.steps"
        )


def _link(path: Path, target: Path) -> None:
    """Link a file, which takes no space; copy it where that is impossible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def branch_config(parent: RunFolder, step: int | None, what: str) -> dict[str, Any]:
    """Plain values of the configuration that a branch has before any override: that of the parent's segment which the step begins
    or lies in.

    Args:
        step: None for the newest checkpoint.

    Raises:
        UserError: `parent` is not a run, or has no complete checkpoint of that step.
    """
    stored = parent.load_config()
    _, record = chosen_checkpoints(parent.path, step)[-1]
    segment = [part for part in segments_of(parent.path, stored) if part.step <= record["step"]][-1]
    values = stored.resolved() | segment.config
    values["run"] |= {"stop_step": None, "time_limit": None}
    whole, weights = _contents(record)
    content = weights if what == "weights" else whole
    values["start_from"] = {"run": str(parent.path), "step": record["step"], "what": what, "content": content}
    return values
