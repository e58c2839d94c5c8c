"""Planning of a study: every cell with model, steps, memory and cost; impossible cells are refused."""

import fnmatch
import math
from typing import Any

from ...data_prep.loading.dataset import Dataset
from ...data_prep.loading.loader import BatchLoader
from ...models import ModelConfig, count_parameters, preset
from ...models.accounting import GIB, activation_bytes, state_bytes, training_bytes_per_gpu, training_flops
from ...models.common.errors import UserError
from ...models.presets import matching_width
from .config import StudyConfig
from .packing import makespan
from .plan import (
    PROCESS_GIB,
    Plan,
    StudyCell,
    budget_label,
    budget_names,
    cells_of_kind,
    microbatch_sequences,
    to_pack,
    zero_stage,
)
from .trunks.planning import branched, with_schedule


def make_plan(study: StudyConfig, dataset: Dataset | None = None) -> Plan:
    """Make the plan of `study`, with its cells in the order of its file.

    Args:
        dataset: the prepared data, for epochs; without it they are unknown.

    Raises:
        UserError: a cell is impossible on this hardware or data, or the whole takes longer than allowed.
    """
    vocab_size = dataset.tokenizer().get_vocab_size() if dataset else study.data.tokenizer.vocab_size
    _refuse_repetitions(study)
    all_cells = with_schedule(study, _Planner(study, vocab_size, dataset).cells())
    for pattern in study.exclude:
        if not any(fnmatch.fnmatch(cell.name, pattern) for cell in all_cells):
            raise UserError(
                f"study {study.name}: exclude: {pattern!r} is the name of no cell; names are like {all_cells[0].name}"
            )
    separate = [cell for cell in all_cells if not any(fnmatch.fnmatch(cell.name, p) for p in study.exclude)]
    if not any(cell.kind == "main" for cell in separate):
        raise UserError(f"study {study.name}: exclude leaves no cell")
    _refuse_impossible(study, separate)
    cells, trunks = branched(study, separate)
    hours = _hours(study, cells, trunks)
    if study.limits.max_hours is not None and hours > study.limits.max_hours:
        raise UserError(
            f"study {study.name}: {hours:.1f} predicted hours are more than limits.max_hours="
            f"{study.limits.max_hours:g}: fewer cells, smaller budgets, or more devices"
        )
    device_hours = hours * study.hardware.devices
    return Plan(
        study=study,
        vocab_size=vocab_size,
        train_tokens=dataset.split("train").num_tokens if dataset else None,
        cells=tuple(cells),
        hours=hours,
        device_hours=device_hours,
        cost=device_hours * study.hardware.cost_per_hour,
        trunks=tuple(trunks),
        separate_hours=_hours(study, separate, []) if trunks else None,
    )


def _hours(study: StudyConfig, cells: list[StudyCell], trunks: list[StudyCell]) -> float:
    """Predicted hours of the sweep, and then of the trunks and the other cells."""
    devices = study.hardware.devices
    sweep = makespan(to_pack(cells_of_kind(cells, "sweep")), devices)
    return (sweep + makespan(to_pack([*trunks, *cells_of_kind(cells, "main")]), devices)) / 3600


class _Planner:
    """Makes the cells of a study; models are configured once per family and size."""

    def __init__(self, study: StudyConfig, vocab_size: int, dataset: Dataset | None):
        self.study, self.vocab_size, self.dataset = study, vocab_size, dataset
        self._models: dict[tuple[str, str], tuple[str, dict[str, Any], ModelConfig]] = {}
        self._epochs: dict[int, float] = {}  # of one step, by batch_tokens

    def cells(self) -> list[StudyCell]:
        study = self.study
        cells = []
        if sweep := study.learning_rate.sweep:
            value = study.budgets.values[sweep.budget]
            cells += [
                self._cell(family, size, value, study.seeds[0], factor)
                for family in study.families
                for size in sweep.sizes
                for factor in sweep.factors
            ]
        cells += [
            self._cell(family, size, value, seed, None)
            for family in study.families
            for size in study.sizes
            for value in study.budgets.values
            for seed in study.seeds
        ]
        return cells

    def _cell(self, family: str, size: str, budget: float, seed: int, factor: float | None) -> StudyCell:
        study = self.study
        preset_name, overrides, config = self._model(family, size)
        length = study.train.sequence_length
        count = count_parameters(config)
        flops_per_token = training_flops(config, length)
        budget_tokens = {
            "tokens": budget,
            "tokens_per_parameter": budget * count.non_embedding,
            "flops": budget / flops_per_token,
        }[study.budgets.kind]
        batch_tokens = self._batch_tokens(budget_tokens)
        steps = max(1, round(budget_tokens / batch_tokens))
        tokens = steps * batch_tokens
        label = budget_label(study.budgets.kind, budget)
        memory = self._memory_gib(config, size, batch_tokens)
        return StudyCell(
            name=f"{family}-{size}-{label}-" + (f"s{seed}" if factor is None else f"lr{factor:g}"),
            kind="main" if factor is None else "sweep",
            family=family,
            size=size,
            budget=label,
            seed=seed,
            factor=factor,
            parameters=count.non_embedding,
            total_parameters=count.total,
            batch_tokens=batch_tokens,
            steps=steps,
            tokens=tokens,
            flops=flops_per_token * tokens,
            state_bytes=state_bytes(config, study.fit.state_context),
            epochs=self._epochs_of(batch_tokens, steps),
            memory_gib=memory,
            per_device=max(1, min(study.hardware.processes_of(size), int(study.hardware.memory_gib / memory))),
            devices=study.hardware.devices_of(size),
            seconds=study.hardware.seconds_of(size, flops_per_token * tokens),
            held_out=size in study.held_out_sizes,
            preset=preset_name,
            model=overrides,
        )

    def _model(self, family: str, size: str) -> tuple[str, dict[str, Any], ModelConfig]:
        """Preset, overrides and model config of a family and size, with as many non-embedding parameters as the study's first
        family."""
        if (family, size) in self._models:
            return self._models[family, size]
        size_config = self.study.sizes[size]
        name, first = f"{family}-{size_config.preset or size}", self.study.families[0]
        overrides = dict(size_config.model)
        if self.study.preset_version != 1:  # plans without it are of version 1
            overrides["preset_version"] = self.study.preset_version
        if size_config.feedforward_width and family == first:
            overrides["feedforward"] = {"width": size_config.feedforward_width}
        elif (size_config.model or size_config.feedforward_width) and family != first:
            target = count_parameters(self._model(first, size)[2]).non_embedding
            width = matching_width(self._preset(family, size, name, overrides), target)
            if width < 8:
                raise UserError(
                    f"{name} at size {size} has more parameters than {first} even without its feed-forward: "
                    f"raise sizes.{size}.feedforward_width"
                )
            overrides["feedforward"] = {"width": width}
        config = self._preset(family, size, name, overrides)
        return self._models.setdefault((family, size), (name, overrides, config))

    def _preset(self, family: str, size: str, name: str, overrides: dict[str, Any]) -> ModelConfig:
        try:
            return preset(name, vocab_size=self.vocab_size, **({"preset_version": 1} | overrides))
        except UserError as error:
            raise UserError(f"study {self.study.name}: family {family} at size {size}: {error}") from error

    def _batch_tokens(self, tokens: float) -> int:
        rule, length = self.study.batch, self.study.train.sequence_length
        sequences = rule.value * (tokens / rule.at_tokens) ** rule.exponent / length
        return length * 2 ** max(0, round(math.log2(sequences)))

    def _memory_gib(self, config: ModelConfig, size: str, batch_tokens: int) -> float:
        study, devices = self.study, self.study.hardware.devices_of(size)
        sequences = microbatch_sequences(study, size, batch_tokens)
        segment = study.train.sequence_length // study.hardware.sequence_parallel_of(size)
        width = 2 if study.train.precision == "bf16" else 4
        activations = activation_bytes(config, sequences, segment, bytes_per_number=width)
        states = training_bytes_per_gpu(config, zero_stage=zero_stage(study, size), world_size=devices)
        return PROCESS_GIB + (states + activations) / GIB

    def _epochs_of(self, batch_tokens: int, steps: int) -> float | None:
        """Epochs over the most repeated source; None without data."""
        if self.dataset is None:
            return None
        if batch_tokens not in self._epochs:
            length = self.study.train.sequence_length
            loader = BatchLoader(
                self.dataset,
                self.study.mixture,
                sequence_length=length,
                batch_sequences=batch_tokens // length,
                seed=self.study.seeds[0],
            )
            self._epochs[batch_tokens] = max((use.epochs or 0.0 for use in loader.describe(1)), default=0.0)
        return self._epochs[batch_tokens] * steps


def _refuse_repetitions(study: StudyConfig) -> None:
    """Raise a `UserError` if two cells would have one name: a list holds a value twice, or two values with one label."""
    sweep = study.learning_rate.sweep
    lists: dict[str, list[str]] = {
        "families": list(study.families),
        "seeds": [str(seed) for seed in study.seeds],
        f"budgets.{study.budgets.kind}": budget_names(study),
        "fit.hold_out": list(study.fit.hold_out or ()),
        "learning_rate.sweep.sizes": list(sweep.sizes) if sweep else [],
        "learning_rate.sweep.factors": [f"{factor:g}" for factor in sweep.factors] if sweep else [],
    }
    for key, labels in lists.items():
        if repeated := next((label for label in labels if labels.count(label) > 1), None):
            raise UserError(
                f"study {study.name}: {key} gives {repeated} twice: cells of one name would be one cell; give values that "
                "differ in their first three digits"
            )


def _refuse_impossible(study: StudyConfig, cells: list[StudyCell]) -> None:
    """Raise a `UserError` about the first impossible cell, with the number of others."""
    problems = []
    for cell in cells:
        if cell.steps < study.limits.min_steps:
            problems.append(
                f"cell {cell.name}: {cell.steps} steps of {cell.batch_tokens:,} tokens are fewer than limits.min_steps="
                f"{study.limits.min_steps}: a larger budget, a smaller batch.value, or exclude: [{cell.name}]"
            )
        elif cell.decay_steps == cell.steps:
            problems.append(
                f"cell {cell.name}: its {cell.steps} steps are all of its cooldown (budgets.trunk): a larger budget, a smaller "
                f"batch.value, or exclude: [{cell.name}]"
            )
        elif problem := _sharing_problem(study, cell):
            problems.append(f"cell {cell.name}: {problem}, or exclude: [{cell.name}]")
        elif cell.memory_gib > study.hardware.memory_gib:
            problems.append(
                f"cell {cell.name}: about {cell.memory_gib:.1f} GiB do not fit the {study.hardware.memory_gib:g} GiB of "
                f"a device: lower hardware.microbatch_tokens, or exclude: [{cell.name}]"
            )
        elif cell.epochs is not None and cell.epochs > study.limits.max_epochs:
            problems.append(
                f"cell {cell.name}: {cell.tokens:,} tokens are {cell.epochs:.1f} epochs of {study.data.name}, more than "
                f"limits.max_epochs={study.limits.max_epochs:g}: more text, a smaller budget, or exclude: [{cell.name}]"
            )
    if problems:
        others = f" (and {len(problems) - 1} more cells)" if len(problems) > 1 else ""
        raise UserError(f"study {study.name}: {problems[0]}{others}")


def _sharing_problem(study: StudyConfig, cell: StudyCell) -> str:
    """Why the cell cannot be trained on several devices as configured, and the remedy; empty if it can."""
    hardware, length = study.hardware, study.train.sequence_length
    shared, sequences = hardware.sequence_parallel_of(cell.size), cell.batch_tokens // length
    if cell.devices > hardware.devices:
        return f"it takes hardware.devices_per_cell={cell.devices}, there are hardware.devices={hardware.devices}: take fewer"
    if cell.devices % shared:
        return f"its {cell.devices} devices (hardware.devices_per_cell) are no multiple of hardware.sequence_parallel={shared}"
    if sequences % hardware.replicas_of(cell.size):
        return (
            f"a batch of {sequences} sequences does not divide among {hardware.replicas_of(cell.size)} "
            "(hardware.devices_per_cell / hardware.sequence_parallel): a larger batch.value, or a power of two"
        )
    if length % shared:
        return f"train.sequence_length={length} is no multiple of hardware.sequence_parallel={shared}: take another"
    return ""
