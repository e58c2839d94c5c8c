"""`StudyConfig`: all sections of a study's configuration, one YAML file, the checks across them, and loading it."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from ....data_prep.config import DatasetConfig, MixtureConfig
from ....models.common.config import Config
from ....models.common.errors import UserError
from ....models.common.files import read_json
from ....models.common.validation import describe_validation_error, first_line
from ....models.presets import FAMILIES, LATEST_VERSION, SIZES
from .sections import (
    BatchConfig,
    BudgetConfig,
    EvaluationConfig,
    FitConfig,
    HardwareConfig,
    LearningRateConfig,
    LimitConfig,
    SizeConfig,
    TrainingConfig,
)

STUDIES = __name__.rsplit(".", 2)[0]  # the package that has them in `configs/`


def _or_names(schema: dict[str, Any]) -> None:
    """Let a JSON schema take a list of names in place of a mapping."""
    mapping = {key: schema.pop(key) for key in list(schema) if key not in ("description", "title")}
    schema["anyOf"] = [mapping, {"type": "array", "items": {"type": "string"}, "minItems": 1}]


class StudyConfig(Config):
    """The complete configuration of a study. See `docs/guides/studies.md` for a tour."""

    added = ("preset_version",)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study, and of its folder below the folder of studies."""
    question: str
    """The question that the study is to answer, shown at the head of its report."""
    families: tuple[str, ...] = Field(min_length=1)
    """Families of the presets that are compared, such as `echo` and `transformer`."""
    preset_version: int = 1
    """Version of the presets, see `model.preset_version` of a run. A file that leaves it out gets the latest; the folder of a study
    keeps the version that it was made with, which is 1 if its plan names none."""
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
        for field in ("devices_per_cell", "sequence_parallel"):
            value = getattr(self.hardware, field)
            for size in value if isinstance(value, dict) else ():
                _one_of(size, tuple(self.sizes), f"size of this study (hardware.{field})")
        return self

    @model_validator(mode="after")
    def _trunk_fits(self) -> "StudyConfig":
        trunk, warmup = self.budgets.trunk, self.train.warmup_fraction
        if trunk and self.batch.exponent:
            raise ValueError(
                f"batch.exponent={self.batch.exponent:g} gives budgets batches of their own, but those of budgets.trunk share "
                "one: set it to 0"
            )
        if trunk and warmup + trunk.cooldown > 1:
            raise ValueError(
                f"train.warmup_fraction={warmup:g} and budgets.trunk.cooldown={trunk.cooldown:g} are more than the whole of the "
                "smallest budget: lower one of them"
            )
        return self

    @property
    def held_out_sizes(self) -> tuple[str, ...]:
        """Sizes excluded from the fits: as configured, else the last one; none if there is a single size."""
        if self.fit.hold_out is not None:
            return self.fit.hold_out
        return tuple(self.sizes)[-1:] if len(self.sizes) > 1 else ()


def study_names() -> list[str]:
    """Names of the studies that come with the package."""
    folder = resources.files(STUDIES).joinpath("configs")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_study(study: str | Path, *, preset_version: int = LATEST_VERSION) -> StudyConfig:
    """Load a study by its name, from a YAML file, or as the plan in its folder states it.

    Args:
        preset_version: of the presets, if a file names none.

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
        text = resources.files(STUDIES).joinpath("configs", f"{study}.yaml").read_text(encoding="utf-8")
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
        return StudyConfig.model_validate({"preset_version": preset_version} | values)
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
