"""The sections of a study's configuration: sizes, budgets, rules for rate and batch, hardware, limits, fits."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ....models.common.config import Config

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


class TrunkConfig(Config):
    """Training at a constant learning rate, from which every budget branches: for its last steps the rate falls."""

    cooldown: float = Field(default=0.1, gt=0, lt=1)
    """The share of a budget's steps in which the learning rate falls."""
    shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """Course of the fall: "linear", or "1-sqrt", by the square root of its progress."""


BudgetUnit = Literal["tokens", "tokens_per_parameter", "flops"]
UNITS: tuple[BudgetUnit, ...] = get_args(BudgetUnit)


class BudgetConfig(Config):
    """Training budgets of every size, in one of three units."""

    added = ("trunk",)

    tokens: tuple[Positive, ...] = ()
    """A grid of training tokens."""
    tokens_per_parameter: tuple[Positive, ...] = ()
    """Training tokens as multiples of the non-embedding parameters."""
    flops: tuple[Positive, ...] = ()
    """Training FLOPs (IsoFLOP); the tokens follow from each model's cost."""
    trunk: TrunkConfig | None = None
    """Train one trunk for each family, size and seed, and branch a cooldown from it for every budget; null trains every cell from
    its first step on."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "BudgetConfig":
        named = [name for name in UNITS if getattr(self, name)]
        if len(named) != 1:
            raise ValueError(f"name one of {', '.join(UNITS)}, not {' and '.join(named) or 'none'}")
        return self

    @property
    def kind(self) -> BudgetUnit:
        """The unit of the budgets."""
        return next(name for name in UNITS if getattr(self, name))

    @property
    def values(self) -> tuple[float, ...]:
        """The budgets, ascending."""
        return tuple(sorted(getattr(self, self.kind)))


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
    """Share of the cell's tokens over which the learning rate grows to its peak; with `budgets.trunk`, of the smallest budget's."""
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

    added = ("devices_per_cell", "sequence_parallel")

    name: str = "this machine"
    """Name of the hardware in plan and report."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What a cell trains on."""
    devices: int = Field(default=1, gt=0)
    """Number of GPUs, or of CPU cores."""
    processes_per_device: Count | dict[str, Count] = 1
    """Cells side by side on one device, at most: one number, or one for each size. Memory may allow fewer."""
    devices_per_cell: Count | dict[str, Count] = 1
    """Devices of one machine that a cell trains on together: one number, or one for each size that takes several."""
    sequence_parallel: Count | dict[str, Count] = 1
    """How many of a cell's devices share each sequence; its other copies share the batch. One number, or one for some sizes."""
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

    @field_validator("tflops", "processes_per_device", "devices_per_cell", "sequence_parallel", mode="before")
    @classmethod
    def _each_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Validate values given as one number or as a mapping; pydantic alone would report the errors of both alternatives."""
        kind, what = (float, "a number") if info.field_name == "tflops" else (int, "a whole number")
        for size, number in (value if isinstance(value, dict) else {"": value}).items():
            try:
                right = kind(number) == float(number) > 0
            except (TypeError, ValueError):
                right = False
            if not right:
                raise ValueError(f"{f'size {size}: ' if size else ''}{number!r} is not {what} above 0")
        return value

    def processes_of(self, size: str) -> int:
        """How many cells of a size run side by side on one device, at most; 1 if a cell takes several devices."""
        if self.devices_of(size) > 1:
            return 1
        return (
            self.processes_per_device[size]
            if isinstance(self.processes_per_device, dict)
            else self.processes_per_device
        )

    def devices_of(self, size: str) -> int:
        """The number of devices that a cell of a size is trained on."""
        return self.devices_per_cell.get(size, 1) if isinstance(self.devices_per_cell, dict) else self.devices_per_cell

    def sequence_parallel_of(self, size: str) -> int:
        """The number of devices that share each sequence in a cell of a size."""
        return (
            self.sequence_parallel.get(size, 1) if isinstance(self.sequence_parallel, dict) else self.sequence_parallel
        )

    def replicas_of(self, size: str) -> int:
        """The number of parts into which the batch of a cell of a size is divided, one for each group of devices that share
        sequences."""
        return max(1, self.devices_of(size) // self.sequence_parallel_of(size))

    def seconds_of(self, size: str, flops: float) -> float:
        """Predicted seconds of a cell of a size with the given training FLOPs, startup included."""
        return self.startup_seconds + flops / (1e12 * self.tflops_of(size) * self.devices_of(size))

    def tflops_of(self, size: str) -> float:
        """TFLOP/s of one process that trains a model of a size."""
        return self.tflops[size] if isinstance(self.tflops, dict) else self.tflops


class LimitConfig(Config):
    """Limits beyond which a cell or study is refused, and GPU-hours beyond which cells are left out."""

    added = ("gpu_hours",)

    min_steps: int = Field(default=20, gt=0)
    """A cell of fewer steps is refused."""
    max_epochs: Positive = 8.0
    """A cell that repeats a source's text more often is refused."""
    max_hours: Positive | None = None
    """A study that is predicted to take longer is refused; no limit if null."""
    gpu_hours: Positive | None = None
    """Hours of device time (GPU-hours; core-hours on CPUs) that the study may spend. A cell counts the devices that it holds, or
    its share of one. Cells that no longer fit by the speed measured so far are left out; a larger limit goes on. Null: no limit."""


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
