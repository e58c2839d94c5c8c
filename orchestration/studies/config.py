"""The typed configuration of a scaling study, one YAML file: families, sizes, budgets, and the rules for its runs."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from ...data_prep.config import DatasetConfig, MixtureConfig
from ...models.common.config import Config
from ...models.common.errors import UserError
from ...models.common.files import read_json
from ...models.common.validation import describe_validation_error, first_line
from ...models.presets import FAMILIES, SIZES

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class SizeConfig(Config):
    """A size of the study: a size of the presets, and model fields to change in every family."""

    preset: str | None = None
    """A size of the presets, such as "1m"; null takes the size's own name."""
    model: dict[str, Any] = Field(default={})
    """Fields of the model's configuration to change; the width of the feed-forward is then matched again between families."""
    feedforward_width: int | None = Field(default=None, gt=0)
    """Width of the first family's feed-forward, where `model` calls for another; those of the other families are matched to it."""


class BudgetConfig(Config):
    """Training budgets of every size, in one of three units."""

    tokens: tuple[Positive, ...] = ()
    """A grid of training tokens."""
    tokens_per_parameter: tuple[Positive, ...] = ()
    """Training tokens as multiples of the non-embedding parameters."""
    flops: tuple[Positive, ...] = ()
    """Training FLOPs (IsoFLOP); the tokens follow from each model's cost."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "BudgetConfig":
        named = [name for name in type(self).model_fields if getattr(self, name)]
        if len(named) != 1:
            raise ValueError(f"name one of tokens, tokens_per_parameter, flops, not {' and '.join(named) or 'none'}")
        return self

    @property
    def kind(self) -> Literal["tokens", "tokens_per_parameter", "flops"]:
        """The unit of the budgets."""
        return next(name for name in ("tokens", "tokens_per_parameter", "flops") if getattr(self, name))

    @property
    def values(self) -> tuple[float, ...]:
        """The budgets, ascending."""
        return tuple(sorted(getattr(self, self.kind)))


def _or_names(schema: dict[str, Any]) -> None:
    """Let a JSON schema take a list of names in place of a mapping."""
    mapping = {key: schema.pop(key) for key in list(schema) if key not in ("description", "title")}
    schema["anyOf"] = [mapping, {"type": "array", "items": {"type": "string"}, "minItems": 1}]


class SweepConfig(Config):
    """A small sweep for the learning rate: `factors` times the rule's, at some sizes, at one budget."""

    sizes: tuple[str, ...] = Field(min_length=2)
    """Sizes to sweep at; at least two, for a rule across sizes."""
    factors: tuple[Positive, ...] = Field(default=(0.5, 1.0, 2.0), min_length=3)
    """Multiples of the rule's learning rate; at least three, so that the best can be an inner one."""
    budget: int = Field(default=0, ge=0)
    """Index of the budget that sweep cells train for; 0 is the smallest."""


class LearningRateConfig(Config):
    """`value * (parameters / at_parameters) ** exponent`, parameters without embeddings; a sweep replaces it by a fit."""

    value: Positive
    """Learning rate of a model with `at_parameters` parameters."""
    at_parameters: Positive = 1e6
    """Parameters (without embeddings) that `value` is for."""
    exponent: float = 0.0
    """Exponent of the power law in the number of parameters; 0 gives all sizes one learning rate."""
    sweep: SweepConfig | None = None
    """A small sweep, whose best learning rates replace this rule by a fit."""


class BatchConfig(Config):
    """`value * (tokens / at_tokens) ** exponent` tokens a batch, to the nearest power of two sequences."""

    value: int = Field(gt=0)
    """Tokens of a batch of a cell with `at_tokens` training tokens."""
    at_tokens: Positive = 1e6
    """Training tokens that `value` is for."""
    exponent: float = 0.0
    """Exponent of the power law in the training tokens; 0 gives all cells one batch."""


class TrainingConfig(Config):
    """Hyperparameters that all cells share."""

    sequence_length: int = Field(gt=0)
    """Tokens of a row."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the cell's tokens over which the learning rate grows to its peak."""
    final_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """The learning rate at the last step, as a fraction of the peak."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """The gradient is scaled down to at most this norm; 0 turns it off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format; "bf16" computes in bf16 and keeps fp32 master weights."""


class EvaluationConfig(Config):
    """Suites evaluated on the last checkpoint of every cell, and the metric that the fits use as loss."""

    suites: tuple[str, ...] = Field(default=("language",), min_length=1)
    """Suites evaluated on the last checkpoint of every cell."""
    loss: str = "language/bits_per_byte"
    """The metric of those suites that the fits use as loss."""


class HardwareConfig(Config):
    """The hardware of a study, for predictions and packing; it does not change the results."""

    name: str = "this machine"
    """Name of the hardware in plan and report."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What a cell trains on."""
    devices: int = Field(default=1, gt=0)
    """Number of GPUs, or of CPU cores."""
    processes_per_device: Count | dict[str, Count] = 1
    """Cells side by side on one device, at most: one number, or one for each size. Memory may allow fewer."""
    memory_gib: Positive
    """Memory of one device in GiB."""
    tflops: Positive | dict[str, Positive]
    """TFLOP/s that one process reaches, with `processes_per_device` of them running: one number, or one for each size. An
    assumption; `study status` and `study run --for` correct it by measured speeds."""
    peak_tflops: Positive | None = None
    """Peak TFLOP/s of one device, for the MFU."""
    cost_per_hour: float = Field(default=0.0, ge=0)
    """Cost of one device for an hour, in any currency."""
    startup_seconds: float = Field(default=10.0, ge=0)
    """Seconds of a cell's imports, compilation, evaluation and files."""
    microbatch_tokens: int | None = Field(default=None, gt=0)
    """Tokens of one forward pass, for the memory; null takes the whole batch."""
    threads: int = Field(default=1, gt=0)
    """CPU threads of a cell."""
    compile: bool = False
    """Use torch.compile for every block: longer to start, faster steps."""

    @field_validator("tflops", "processes_per_device", mode="before")
    @classmethod
    def _each_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Check both forms, number or mapping, here: pydantic would report the errors of each alternative."""
        kind, what = (int, "a whole number") if info.field_name == "processes_per_device" else (float, "a number")
        for size, number in (value if isinstance(value, dict) else {"": value}).items():
            try:
                right = kind(number) == float(number) > 0
            except (TypeError, ValueError):
                right = False
            if not right:
                raise ValueError(f"{f'size {size}: ' if size else ''}{number!r} is not {what} above 0")
        return value

    def processes_of(self, size: str) -> int:
        """Cells of that size side by side on one device, at most."""
        return (
            self.processes_per_device[size]
            if isinstance(self.processes_per_device, dict)
            else self.processes_per_device
        )

    def tflops_of(self, size: str) -> float:
        """TFLOP/s of one process that trains a model of that size."""
        return self.tflops[size] if isinstance(self.tflops, dict) else self.tflops


class LimitConfig(Config):
    """Limits beyond which a cell or study is refused."""

    min_steps: int = Field(default=20, gt=0)
    """A cell of fewer steps is refused."""
    max_epochs: Positive = 8.0
    """A cell that repeats a source's text more often is refused."""
    max_hours: Positive | None = None
    """A study that is predicted to take longer is refused; no limit if null."""


class FitConfig(Config):
    """Options of the fits."""

    added = ("expected_noise",)

    hold_out: tuple[str, ...] | None = None
    """Sizes excluded from the fits and predicted by them; null takes the last size."""
    huber_delta: Positive = 1e-2
    """Delta of the Huber loss on the log of the loss. Noise of seeds is about half a percent: beyond twice that a cell
    counts as an outlier. Chinchilla took 1e-3, which is nearly the sum of absolute residuals."""
    bootstrap: int = Field(default=1000, ge=100)
    """Resamples behind the intervals."""
    expected_noise: Positive = 5e-3
    """Noise of one run around the law, relative, for which `study plan` says how wide the intervals will be."""
    state_context: int = Field(default=2048, gt=0)
    """Tokens of context at which a model's state is counted, for the tables."""


class StudyConfig(Config):
    """The complete configuration of a study. See `docs/guides/studies.md` for a tour."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study, and of its folder below the folder of studies."""
    question: str
    """The question that the study is to answer, shown at the head of its report."""
    families: tuple[str, ...] = Field(min_length=1)
    """Families of the presets that are compared, such as `echo` and `transformer`."""
    sizes: dict[str, SizeConfig] = Field(min_length=1, json_schema_extra=_or_names)
    """Sizes of the models, by name. A list of names is short for sizes of the presets."""
    budgets: BudgetConfig
    """How long each size is trained."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds; every cell is trained with each."""
    exclude: tuple[str, ...] = Field(default=())
    """Patterns of cell names to leave out, such as `transformer-50m-*`."""
    learning_rate: LearningRateConfig
    """The rule for the learning rate: `value * (parameters / at_parameters) ** exponent`."""
    batch: BatchConfig
    """The rule for the batch."""
    data: DatasetConfig
    """The dataset that all cells train on."""
    mixture: MixtureConfig = MixtureConfig(recall=None)
    """What a batch is made of."""
    train: TrainingConfig
    """Hyperparameters that all cells share."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluations of the cells."""
    hardware: HardwareConfig
    """The hardware, for predictions and packing."""
    limits: LimitConfig = LimitConfig()
    """Limits beyond which a cell or the study is refused."""
    fit: FitConfig = FitConfig()
    """Options of the fits."""
    attempts: int = Field(default=3, gt=0)
    """How often a cell is tried before it is reported as failed."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Predicted minutes between a cell's checkpoints: what a crash repeats at most."""

    @model_validator(mode="before")
    @classmethod
    def _sizes_by_name(cls, values: Any) -> Any:
        """`sizes: [1m, 4m]` is short for sizes of the presets."""
        if isinstance(values, dict) and isinstance(values.get("sizes"), list):
            values = values | {"sizes": {str(name): {} for name in values["sizes"]}}
        return values

    @model_validator(mode="after")
    def _names_exist(self) -> "StudyConfig":
        for family in self.families:
            _one_of(family, FAMILIES, "family")
        for name, size in self.sizes.items():
            _one_of(size.preset or name, SIZES, "size")
        swept = self.learning_rate.sweep
        if swept and swept.budget >= len(self.budgets.values):
            raise ValueError(f"learning_rate.sweep.budget={swept.budget}: there are {len(self.budgets.values)} budgets")
        for size in (*(self.fit.hold_out or ()), *(swept.sizes if swept else ())):
            _one_of(size, tuple(self.sizes), "size of this study")
        for field in ("tflops", "processes_per_device"):
            value = getattr(self.hardware, field)
            if missing := [size for size in self.sizes if isinstance(value, dict) and size not in value]:
                raise ValueError(f"hardware.{field} has no number for size {missing[0]}")
        return self

    @property
    def held_out_sizes(self) -> tuple[str, ...]:
        """Sizes excluded from the fits: as configured, else the last one; none if there is a single size."""
        if self.fit.hold_out is not None:
            return self.fit.hold_out
        return tuple(self.sizes)[-1:] if len(self.sizes) > 1 else ()


def study_names() -> list[str]:
    """Names of the studies that come with the package."""
    folder = resources.files(__package__).joinpath("configs")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_study(study: str | Path) -> StudyConfig:
    """Load a study by its name, from a YAML file, or as the plan in its folder states it.

    Raises:
        UserError: no such study, file or folder, not YAML, an unknown key, or a value of the wrong type.
    """
    path = Path(study)
    if (path / "plan.json").is_file():
        return _stored_study(path / "plan.json")
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text, origin = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"study {path} cannot be read: {first_line(error)}") from error
    elif str(study) in study_names():
        origin = f"study {study}"
        text = resources.files(__package__).joinpath("configs", f"{study}.yaml").read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(str(study), study_names(), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"studies: {', '.join(study_names())}"
        raise UserError(
            f"there is no study {str(study)!r}: {hint} (or name a .yaml file, or the folder of a study that was run)"
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{origin} is not valid YAML: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{origin} is not a mapping: it must hold {', '.join(StudyConfig.model_fields)}")
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{origin}: {describe_validation_error(error, StudyConfig)}") from error


def _stored_study(plan_file: Path) -> StudyConfig:
    try:
        return StudyConfig.model_validate(read_json(plan_file)["study"])
    except (ValidationError, KeyError, TypeError) as error:
        raise UserError(f"{plan_file} does not fit this version: name the study's file instead") from error


def _one_of(name: str, names: Any, kind: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
        raise ValueError(f"no {kind} is called {name!r}: did you mean {near[0]!r}?")
