"""The configuration of a recall sweep: arms trained on the same tasks at several learning rates and seeds, evaluated on the same
queries."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError

from ...data_prep.recall import RecallVocabulary, check_room, task_of
from ...models.common.config import Config
from ...models.common.errors import UserError
from ...models.common.renamed_keys import with_new_keys
from ...models.common.validation import describe_validation_error
from ..measurements.bounded_cache import CacheGrid
from ..measurements.recall_cells import RecallCell, RecallGrid, cells_of
from .training_config import RecallTraining

SWEEP_FOLDER = Path(__file__).parent / "configs"


def _with_new_keys(training: dict[str, Any]) -> dict[str, Any]:
    return with_new_keys("recall_training", training)


class Arm(Config):
    """An arm of the sweep: a preset, with the fields of its model config and of its training that differ."""

    preset: str
    """Name of the model's preset."""
    model: dict[str, Any] = Field(default={})
    """Fields of the model's configuration that differ from the preset."""
    training: Annotated[dict[str, Any], AfterValidator(_with_new_keys)] = Field(default={})
    """Fields of the training that differ from the sweep's."""
    longest: int | None = Field(default=None, gt=0)
    """Tokens of the longest sequence that the arm is evaluated on, for arms that would take too long; all if null."""
    only: tuple[tuple[int, int], ...] = ()
    """Pairs and gap (tokens beyond the shortest sequence) of the cells that are evaluated; all if empty."""
    tokens: int | None = Field(default=None, gt=0)
    """Training tokens of each cell where each is learned by a model of its own, instead of the sweep's."""
    caches: tuple[CacheGrid, ...] = ()
    """Bounded KV caches with which the trained models are evaluated too, on every cell, token by token after the context."""
    prefix_mask: bool = False
    """SKA layers write only the tokens before a row's first query position (in most tasks that of the queried key), in training
    and in evaluation."""


class Curriculum(Config):
    """A cell's model begins with shorter gaps than the cell's."""

    gaps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Gaps to train at, in this order; those above the cell's own are left out, and the cell's own follows if it is not the
    last. If the first gap is listed twice, `gate_penalty` has a second length to begin at in every cell."""
    lengthen_at: float = Field(gt=0, le=1)
    """The next gap follows when so large a share of the last answers is right (see `lengthen_at` of the training)."""


class CellTraining(Config):
    """Every cell is learned by a model of its own, on its task and pairs alone, at its length or, in a curriculum, up to it."""

    tokens: int = Field(gt=0)
    """Training tokens of a cell, at most."""
    batch_tokens: int = Field(gt=0)
    """Tokens of a step, in whole sequences, at least one."""
    curriculum: Curriculum | None = None
    """Shorter gaps to begin with; null trains at the cell's length alone."""
    enough: float | None = Field(default=None, gt=0, le=1)
    """A cell whose answers are right to such a share at one learning rate is not trained at another."""


class VocabularySizes(Config):
    """The numbers of keys, values and noise tokens; a third of the noise never occurs in training, and `num_new_noise` are for
    haystacks on which no model was selected."""

    added = ("num_new_noise",)

    num_keys: int = Field(default=RecallVocabulary.num_keys, gt=0)
    """Number of tokens that serve as keys."""
    num_values: int = Field(default=RecallVocabulary.num_values, gt=1)
    """Number of tokens that serve as values."""
    num_noise: int = Field(default=RecallVocabulary.num_noise, ge=RecallVocabulary.UNSEEN_NOISE_SHARE)
    """Number of tokens that serve as noise; a third of them is never shown in training."""
    num_new_noise: int = Field(default=RecallVocabulary.num_new_noise, ge=0)
    """Number of further noise tokens, for haystacks on which no model was selected."""


Percent = Annotated[float, Field(ge=0, le=100)]


class PublishedCell(Config):
    """One published accuracy, by arm, of one cell."""

    task: str
    """Name of the recall task."""
    pairs: int = Field(gt=0)
    """Number of key-value pairs."""
    length: int = Field(gt=0)
    """Tokens of a sequence."""
    percent: Annotated[dict[str, Percent], Field(min_length=1)]
    """The published accuracy in percent, by arm."""


class Published(Config):
    """Published results on the same tasks, shown for comparison; they change no run."""

    source: str
    """Where the numbers are from."""
    means: dict[str, dict[str, Percent]] = Field(default={})
    """The mean accuracy of each task in percent, by arm."""
    cells: tuple[PublishedCell, ...] = ()
    """Accuracies of single cells."""


class RecallSweep(Config):
    """A recall sweep as its YAML file states it."""

    renamed = "recall_sweep"

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Name of the sweep in results and reports."""
    description: str = ""
    """What the sweep is for, shown at the head of its report."""
    vocabulary: VocabularySizes = VocabularySizes()
    """Sizes of the vocabulary of every model."""
    match: str | None = None
    """The arm whose number of non-embedding parameters the others get, by the width of their feed-forwards; null leaves them."""
    training: RecallTraining
    """How every arm is trained."""
    learning_rates: Annotated[tuple[float, ...], Field(min_length=1)]
    """Learning rates; every arm is trained with each, at each seed."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    """Seeds; every arm is trained with each, at each learning rate."""
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    """The models that are compared, by name."""
    recall: Annotated[tuple[RecallGrid, ...], Field(min_length=1)]
    """Grids of queries that every run is evaluated on."""
    batch_tokens: int = Field(default=2**19, gt=0)
    """Tokens of one forward pass of an evaluation."""
    own_queries: bool = False
    """Evaluate the runs of each seed on queries of their own, instead of all runs on the same."""
    mean_of: tuple[str, ...] = ()
    """Tasks whose mean chooses an arm's learning rate and is shown for the arm; all if empty."""
    published: Published | None = None
    """Published results of others, shown beside ours."""
    each_cell: CellTraining | None = None
    """Train one model for each cell instead of one for all; tasks, pairs, lengths, batch and steps of the training then
    follow from the cell."""
    together: int = Field(default=12, gt=0)
    """Runs that train side by side on a GPU, as far as its memory goes."""

    @property
    def ids(self) -> RecallVocabulary:
        """The token ids of the sweep's tasks, which begin at 0."""
        return RecallVocabulary(**self.vocabulary.model_dump())

    @property
    def cells(self) -> list[RecallCell]:
        """All cells, in the sweep's order."""
        return cells_of(self.recall)

    def evaluates(self, arm: str, cell: RecallCell) -> bool:
        """Whether the arm is evaluated on the cell."""
        longest, only = self.arms[arm].longest, self.arms[arm].only
        fits = longest is None or cell.length <= longest
        return fits and (not only or (cell.pairs, cell.gap) in only)


def sweep_names() -> list[str]:
    """Names of the sweeps that come with the package."""
    return sorted(path.stem for path in SWEEP_FOLDER.glob("*.yaml"))


def load_sweep(path: Path) -> RecallSweep:
    """Read a sweep by its name, or from a YAML file of your own.

    Raises:
        UserError: no such file, or one that does not describe a sweep.
    """
    if str(path) in sweep_names():
        path = SWEEP_FOLDER / f"{path}.yaml"
    if not Path(path).is_file():
        raise UserError(f"sweep {path} does not exist: name a YAML file or one of {', '.join(sweep_names())}")
    try:
        sweep = RecallSweep.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"sweep {path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError(f"sweep {path}: {describe_validation_error(error, RecallSweep)}") from error
    if sweep.match is not None and sweep.match not in sweep.arms:
        raise UserError(f"sweep {path}: match is {sweep.match!r}: it names one of {', '.join(sweep.arms)}")
    published = sweep.published or Published(source="")
    named = [*sweep.mean_of, *(task for means in published.means.values() for task in means)]
    named += [cell.task for cell in published.cells]
    tasks = dict.fromkeys(cell.name for cell in sweep.cells)
    if unknown := [task for task in named if task not in tasks]:
        raise UserError(f"sweep {path}: {unknown[0]!r} is not evaluated in it: it evaluates {', '.join(tasks)}")
    keys = sweep.vocabulary.num_keys
    for cell in sweep.cells:
        if (needed := task_of(cell.task).num_keys(cell.pairs, **cell.options)) > keys:
            raise UserError(
                f"sweep {path}: {cell.label} needs {needed} keys, there are {keys} (`vocabulary: num_keys`)"
            )
        try:
            check_room(cell.task, length=cell.length, pairs=cell.pairs, vocabulary=sweep.ids, **cell.options)
        except UserError as error:
            raise UserError(f"sweep {path}: {error}") from None
    cells = {(cell.pairs, cell.gap) for cell in sweep.cells}
    for name, arm in sweep.arms.items():
        if arm.prefix_mask and any(cell.recurrent for cell in sweep.cells if sweep.evaluates(name, cell)):
            raise UserError(
                f"sweep {path}: arm {name}: `prefix_mask` is for parallel passes, but a cell is `recurrent`"
            )
        if arm.caches and (arm.prefix_mask or sweep.each_cell is not None):
            raise UserError(
                f"sweep {path}: arm {name}: `caches` is for models of all cells that read token by token: leave out "
                "`prefix_mask` and `each_cell`"
            )
        for length in {cell.length for cell in sweep.cells}:
            found = [(b.name, b.bytes) for grid in arm.caches if grid.evaluates(length) for b in grid.budgets]
            if twice := {one for one in found if found.count(one) > 1}:
                policy, size = min(twice)
                raise UserError(f"sweep {path}: arm {name}: `caches` has {policy} with {size:,} bytes twice")
        if arm.tokens is not None and sweep.each_cell is None:
            raise UserError(f"sweep {path}: arm {name}: `tokens` is the budget of a cell: it needs `each_cell`")
        if strange := set(arm.only) - cells:
            pairs, gap = min(strange)
            raise UserError(f"sweep {path}: arm {name}: no cell has {pairs} pairs and a gap of {gap} (`only`)")
    for task in sweep.mean_of or tasks:
        if not any(cell.name == task and all(sweep.evaluates(arm, cell) for arm in sweep.arms) for cell in sweep.cells):
            raise UserError(
                f"sweep {path}: no cell of {task} is evaluated for every arm: give `longest` or `only` to fewer arms"
            )
    return sweep
