"""The plan of a study: every cell with its model, tokens, FLOPs, learning rate and cost, before anything runs.

Pure code: a plan depends on the study file and on the prepared data alone.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from operator import attrgetter
from typing import Any, Literal

from ...models import ModelConfig, preset
from ...models.common.config import Record
from ...pipeline.config import RunConfig, parse_config
from .config import StudyConfig
from .learning_rate import LearningRateRule
from .packing import PackedCell

PROCESS_GIB = 1.0  # of a process without its model: libraries, and a CUDA context


class StudyCell(Record):
    """One run of a study.

    Attributes:
        kind: "main"; "sweep" for the search of the learning rate; "trunk" for training that cells branch from.
        budget: label of the budget; cells of one label are compared.
        factor: of the learning rate's rule, in a sweep cell.
        parameters: without embeddings; `total_parameters` with them.
        tokens: training tokens, whole steps.
        flops: of the whole training, what a trunk did of it included.
        state_bytes: of one sequence at `fit.state_context` tokens.
        epochs: over the most repeated source; None before the data is prepared.
        memory_gib: estimate, of one process.
        per_device: cells of its kind side by side on a device; 1 if it takes several `devices`.
        devices: that it trains on together.
        seconds: predicted, startup included, without the trunk.
        held_out: excluded from the fits.
        model: fields of the model that differ from the preset.
        trunk: name of the trunk that the cell branches from, at `branch_step`; None if it is trained from its first step on.
        warmup_tokens: None if they are a share of the cell's tokens.
        decay_steps: last steps, in which the learning rate falls; 0 in a trunk, None in a study without.
    """

    name: str
    kind: Literal["main", "sweep", "trunk"] = "main"
    family: str
    size: str
    budget: str
    seed: int
    factor: float | None = None
    parameters: int
    total_parameters: int
    batch_tokens: int
    steps: int
    tokens: int
    flops: float
    state_bytes: int
    epochs: float | None
    memory_gib: float
    per_device: int
    devices: int = 1
    seconds: float
    held_out: bool
    preset: str
    model: dict[str, Any]
    trunk: str | None = None
    branch_step: int = 0
    warmup_tokens: int | None = None
    decay_steps: int | None = None

    def architecture(self, vocab_size: int) -> ModelConfig:
        """The cell's model."""
        return preset(self.preset, vocab_size=vocab_size, **({"preset_version": 1} | self.model))

    @property
    def occupied(self) -> Fraction:
        """The number of devices that the cell occupies while it runs, or the share of one."""
        return Fraction(self.devices, self.per_device)

    @property
    def own_steps(self) -> int:
        """The steps that the cell itself trains, without those of its trunk."""
        return self.steps - self.branch_step

    @property
    def own_tokens(self) -> int:
        """The tokens of `own_steps`."""
        return self.tokens - self.branch_step * self.batch_tokens

    @property
    def own_flops(self) -> float:
        """The FLOPs of `own_steps`."""
        return self.flops * self.own_steps / self.steps


class Plan(Record):
    """A study with its cells and their predicted duration and cost.

    Attributes:
        vocab_size: of the tokenizer.
        train_tokens: of the dataset; None before it is prepared.
        hours: wall clock on the hardware; `device_hours` over all devices, which is what costs.
        trunks: what cells branch from; they are trained, but not evaluated.
        separate_hours: `hours` if every cell were trained from its first step on; None without trunks.
    """

    version: Literal[1] = 1
    study: StudyConfig
    vocab_size: int
    train_tokens: int | None
    cells: tuple[StudyCell, ...]
    hours: float
    device_hours: float
    cost: float
    trunks: tuple[StudyCell, ...] = ()
    separate_hours: float | None = None

    def of_kind(self, kind: Literal["main", "sweep"]) -> list[StudyCell]:
        """The cells of one kind, in the plan's order."""
        return [cell for cell in self.cells if cell.kind == kind]

    @property
    def by_name(self) -> dict[str, StudyCell]:
        """The cells and trunks by their names."""
        return {cell.name: cell for cell in (*self.trunks, *self.cells)}

    @property
    def occupied_hours(self) -> float:
        """Predicted hours of device time that cells and trunks hold: `device_hours` without idle devices."""
        return sum(cell.seconds * float(cell.occupied) for cell in (*self.trunks, *self.cells)) / 3600

    @property
    def flops(self) -> float:
        """Training FLOPs of all cells and trunks."""
        return sum(cell.own_flops for cell in (*self.trunks, *self.cells))

    @property
    def tokens(self) -> int:
        """Training tokens of all cells and trunks."""
        return sum(cell.own_tokens for cell in (*self.trunks, *self.cells))

    def branch_steps(self, trunk: StudyCell) -> tuple[int, ...]:
        """The steps of a trunk that cells branch from, ascending."""
        return tuple(sorted({cell.branch_step for cell in self.cells if cell.trunk == trunk.name}))


def to_pack(
    cells: Iterable[StudyCell], seconds: Callable[[StudyCell], float] = attrgetter("seconds")
) -> list[PackedCell]:
    """The cells and trunks as they are packed on devices; `seconds` returns a cell's duration, by default the predicted one.

    A trunk is taken to reach a step after the step's share of its duration.
    """
    cells = list(cells)
    trunks = {cell.name: cell for cell in cells if cell.kind == "trunk"}
    packed = []
    for cell in cells:
        trunk = trunks.get(cell.trunk or "")
        reached = seconds(trunk) * cell.branch_step / trunk.steps if trunk else 0.0
        packed.append(PackedCell(cell.name, seconds(cell), cell.per_device, cell.trunk, reached, cell.devices))
    return packed


def cell_config(study: StudyConfig, cell: StudyCell, rule: LearningRateRule) -> RunConfig:
    """The configuration of a cell's or trunk's run; a pure function, so that a restarted study resumes the same run.

    Where a run branches from a trunk is not part of it: the branch is the same as a run that is trained so from its first step on.
    """
    train, hardware = study.train, study.hardware
    microbatch = microbatch_sequences(study, cell.size, cell.batch_tokens)
    minutes = max(cell.seconds / 60, 1e-9)
    checkpoint_every = math.ceil(cell.own_steps * min(1.0, study.checkpoint_minutes / minutes))
    warmup_tokens = round(train.warmup_fraction * cell.tokens) if cell.warmup_tokens is None else cell.warmup_tokens
    values = dict(
        name=cell.name,
        seed=cell.seed,
        data=study.data.model_dump(mode="json"),
        mixture=study.mixture.model_dump(mode="json"),
        model=dict(preset=cell.preset, **cell.model),
        train=dict(
            sequence_length=train.sequence_length,
            batch_tokens=cell.batch_tokens,
            steps=cell.steps,
            learning_rate=rule.at(cell.family, cell.parameters) * (cell.factor or 1.0),
            final_learning_rate_fraction=train.final_learning_rate_fraction,
            warmup_tokens=warmup_tokens,
            weight_decay=train.weight_decay,
            betas=list(train.betas),
            gradient_clipping=train.gradient_clipping,
            precision=train.precision,
        )
        | _schedule(study, cell),
        run=dict(
            workers=cell.devices,
            sequence_parallel=hardware.sequence_parallel_of(cell.size),
            zero_stage=zero_stage(study, cell.size),
            microbatch_sequences=microbatch,
            checkpoint_every=max(1, min(cell.steps, checkpoint_every)),
            keep_checkpoints=1,
            threads=hardware.threads,
            compile=hardware.compile,
            device=hardware.device,
        ),
        evaluation=dict(suites=list(study.evaluation.suites)),
    )
    return parse_config(values, f"cell {cell.name}")


def _schedule(study: StudyConfig, cell: StudyCell) -> dict[str, Any]:
    """Keys of `train`: a trunk's learning rate stays constant, that of a cell of such a study falls in its last steps."""
    if study.budgets.trunk is None:
        return {}
    if cell.kind == "trunk":
        return {"schedule": "constant"}
    shape = study.budgets.trunk.shape
    return {"schedule": "warmup-stable-decay", "decay_steps": cell.decay_steps, "decay_shape": shape}


def cells_of_kind(cells: list[StudyCell], kind: str) -> list[StudyCell]:
    """The cells of one kind, in their order."""
    return [cell for cell in cells if cell.kind == kind]


def budget_names(study: StudyConfig) -> list[str]:
    """The study's budgets, ascending, as in `StudyCell.budget`."""
    return [budget_label(study.budgets.kind, value) for value in study.budgets.values]


def zero_stage(study: StudyConfig, size: str) -> int:
    """The ZeRO stage of a cell: several devices share the optimizer's state; on one, stage 1 keeps fp32 master weights for bf16."""
    return 1 if study.train.precision == "bf16" or study.hardware.devices_of(size) > 1 else 0


def microbatch_sequences(study: StudyConfig, size: str, batch_tokens: int) -> int:
    """Sequences per forward pass: a device's part of the batch, or the largest power of two within `hardware.microbatch_tokens`.

    Devices that share sequences hold parts of them.
    """
    hardware, length = study.hardware, study.train.sequence_length
    allowed = max(1, (hardware.microbatch_tokens or batch_tokens) * hardware.sequence_parallel_of(size) // length)
    return min(max(1, batch_tokens // length // hardware.replicas_of(size)), 2 ** int(math.log2(allowed)))


def budget_label(kind: str, value: float) -> str:
    """The label of a budget: `1e15F` (FLOPs), `20tpp` (tokens per parameter), or tokens such as `1.5B`."""
    if kind == "flops":
        return f"{value:.3g}F".replace("+", "")
    if kind == "tokens_per_parameter":
        return f"{value:g}tpp"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
