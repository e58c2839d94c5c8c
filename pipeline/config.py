"""The typed configuration of a run: YAML recipe, dotted overrides, and the resolved form that is stored with the run.

Sections that say *what* is trained (`seed`, `data`, `mixture`, `model`, `train`) make up the run's identity; `run` and
`evaluation` say *how* and may change when a run is resumed.
"""

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, model_validator

from ..data_prep.config import DatasetConfig, MixtureConfig
from ..models import ModelConfig, preset
from ..models.common.config import Config
from ..models.common.errors import UserError
from ..models.common.files import sha256_json, write_text
from ..models.common.validation import describe_validation_error, first_line, refuse_resolvers

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
IDENTITY_SECTIONS = ("seed", "data", "mixture", "model", "train")


class ModelSection(Config, extra="allow"):
    """A preset by name; every other key overrides a field of its `ModelConfig`. The vocabulary comes from the tokenizer."""

    preset: str
    """Name of a preset, a family and a size such as `echo-1m`; `echo-lm models` lists them."""

    @model_validator(mode="after")
    def _builds(self) -> "ModelSection":
        self.resolve(vocab_size=512)
        return self

    def resolve(self, vocab_size: int) -> ModelConfig:
        """The model's full configuration for a tokenizer of `vocab_size` entries."""
        overrides = dict(self.model_extra or {})
        if "vocab_size" in overrides:
            raise UserError("model.vocab_size is set by the tokenizer: set data.tokenizer.vocab_size instead")
        return preset(self.preset, vocab_size=vocab_size, **overrides)


class TrainSection(Config):
    """Hyperparameters of the training. Batch and warmup are given in tokens; the numbers of steps follow."""

    added = ("gate_penalty",)
    renamed = "train"

    sequence_length: int = Field(gt=0)
    """Tokens of a row."""
    batch_tokens: int = Field(gt=0)
    """Tokens of a batch, all workers together; a multiple of `sequence_length`."""
    steps: int = Field(gt=0)
    """Number of updates: the horizon of the learning-rate schedule, and where training ends."""
    learning_rate: float = Field(gt=0)
    """Peak of the learning rate."""
    final_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """The learning rate at the last step, as a fraction of the peak."""
    schedule: Literal["cosine", "warmup-stable-decay"] = "cosine"
    """Course of the learning rate after the warmup: "cosine", or "warmup-stable-decay", which holds the peak until it decays."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """The share of the steps that "warmup-stable-decay" decays in."""
    warmup_tokens: int = Field(default=0, ge=0)
    """Tokens over which the learning rate grows from zero to its peak."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """The gradient is scaled down to at most this norm; 0 turns it off."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of log(Z)^2 in the loss, which keeps the logits from drifting."""
    gate_penalty: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Nats a token added to the loss for SKA write gates that are all open: none in the first half of the steps, growing to
    this at the last."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format; "bf16" computes in bf16 and keeps fp32 master weights."""

    @model_validator(mode="after")
    def _whole_sequences(self) -> "TrainSection":
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is not a multiple of sequence_length={self.sequence_length}"
            )
        return self

    @property
    def batch_sequences(self) -> int:
        """Sequences in a batch, all ranks together."""
        return self.batch_tokens // self.sequence_length

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warmup, rounded up."""
        return -(-self.warmup_tokens // self.batch_tokens)


class RunSection(Config):
    """Execution settings: workers, ZeRO, checkpoints, restarts. They may change on resume and alter results only by rounding."""

    added = ("cuda_graphs",)

    workers: int = Field(default=1, gt=0)
    """Processes, one a GPU."""
    min_workers: int | None = Field(default=None, gt=0)
    """Go on with as few workers when nodes are lost, and grow back; null waits for all."""
    sequence_parallel: int = Field(default=1, gt=0)
    """Workers that share each sequence."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """Stage of DeepSpeed's ZeRO: what is spread over the workers. 0 nothing, 1 optimizer state, 2 also gradients, 3 also
    weights."""
    microbatch_sequences: int | None = Field(default=None, gt=0)
    """Sequences of one forward pass; null takes all that a worker has."""
    activation_checkpointing: bool = False
    """Compute blocks again in the backward pass, to save memory."""
    offload_optimizer: bool = False
    """Keep AdamW and its state on the CPU."""
    compile: bool = False
    """Use torch.compile for every block: longer to start, faster steps."""
    cuda_graphs: bool = True
    """Launch the blocks as CUDA graphs, which frees small models from the host: with ZeRO 0 or 1 and whole sequences on a GPU."""
    prefetch: int = Field(default=2, gt=0)
    """Batches made ahead of the step that needs them."""
    checkpoint_every: int = Field(default=100, gt=0)
    """Steps between checkpoints."""
    checkpoint_beside_training: bool = True
    """Write a checkpoint while the next steps train."""
    keep_checkpoints: int | None = Field(default=None, gt=0)
    """How many of the newest checkpoints stay resumable; null keeps all."""
    keep_every: int | None = Field(default=None, gt=0)
    """Checkpoints of every so many steps stay resumable too."""
    health_every: int = Field(default=100, ge=0)
    """Steps between looks at the SKA layers; 0 turns them off."""
    rollback_after: int = Field(default=5, gt=0)
    """Steps in a row without a finite gradient before training goes back to the last checkpoint."""
    stop_step: int | None = Field(default=None, gt=0)
    """Leave cleanly after this step."""
    threads: int = Field(default=1, gt=0)
    """CPU threads of a worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the workers compute; "auto" takes GPUs where there are some."""
    max_restarts: int = Field(default=3, ge=0)
    """How often in a row what died is started again without a new checkpoint."""
    hang_seconds: float = Field(default=600, gt=0)
    """A worker that is silent for so many seconds, or a worker group that makes no step, is replaced."""
    straggler_factor: float = Field(default=2.0, ge=0)
    """A worker that computes so many times longer than the median is reported; 0 turns this off."""
    cluster_wait_seconds: float = Field(default=1800, gt=0)
    """How long `run --address` waits for a cluster that does not answer."""
    master_port: int | None = Field(default=None, gt=0, lt=65536)
    """Port at which the workers of `train` meet; null takes a free one."""


class EvaluationSection(Config):
    """Evaluations during the training: which suites, on which checkpoints, with which resources."""

    suites: tuple[str, ...] = ()
    """Names of suites, or paths of YAML files."""
    every: int = Field(default=1, gt=0)
    """Evaluate every so many checkpoints; the last one always."""
    every_tokens: int | None = Field(default=None, gt=0)
    """Instead of `every`: evaluate the first checkpoint after every so many tokens; the last one always."""
    parallel: int = Field(default=1, gt=0)
    """Evaluation jobs at once."""
    cpus: float = Field(default=0, ge=0)
    """Ray CPUs that a job reserves; 0 shares the training's, at low priority."""
    gpus: float = Field(default=0, ge=0)
    """Ray GPUs that a job reserves; with 0 it runs on the CPU."""
    timeout_minutes: float | None = Field(default=240, gt=0)
    """Minutes after which a job is stopped and counts as failed, so that one that hangs does not hold the others up; null for no
    limit."""


class RunConfig(Config):
    """The complete configuration of a run. See `docs/recipes.md` for a tour."""

    name: RunName
    """Name of the run, and of its folder below the folder of runs."""
    seed: int = 0
    """Seed of weights, batch order and recall sequences."""
    data: DatasetConfig
    """The dataset that the run trains on; prepared once for all runs that name it."""
    mixture: MixtureConfig
    """What a batch is made of."""
    model: ModelSection
    """The model."""
    train: TrainSection
    """Hyperparameters of the training."""
    run: RunSection = RunSection()
    """How the training is executed."""
    evaluation: EvaluationSection = EvaluationSection()
    """Evaluations of the checkpoints."""

    @model_validator(mode="after")
    def _batch_divides(self) -> "RunConfig":
        run, train = self.run, self.train
        if run.workers % run.sequence_parallel:
            raise ValueError(
                f"run.workers={run.workers} is not a multiple of run.sequence_parallel={run.sequence_parallel}"
            )
        if (run.min_workers or 1) > run.workers:
            raise ValueError(f"run.min_workers={run.min_workers} is more than run.workers={run.workers}")
        replicas = run.workers // run.sequence_parallel
        rows, rest = divmod(train.batch_sequences, replicas)
        if rest:
            shared = f" / run.sequence_parallel={run.sequence_parallel}" if run.sequence_parallel > 1 else ""
            raise ValueError(
                f"a batch of {train.batch_sequences} sequences does not divide among run.workers={run.workers}{shared}"
            )
        if rows % (run.microbatch_sequences or rows):
            raise ValueError(
                f"a rank's {rows} sequences do not divide into run.microbatch_sequences={run.microbatch_sequences}"
            )
        segment, rest = divmod(train.sequence_length, run.sequence_parallel)
        if rest:
            sizes = f"train.sequence_length={train.sequence_length}", f"run.sequence_parallel={run.sequence_parallel}"
            raise ValueError(" is not a multiple of ".join(sizes))
        for ska in self.model.resolve(vocab_size=512).ska_sections():
            if run.sequence_parallel > 1 and ska.mode == "chunk" and segment % ska.grid:
                raise ValueError(
                    f"run.sequence_parallel={run.sequence_parallel} leaves {segment} tokens a worker, which is not a "
                    f"multiple of the {ska.grid} of a chunk (model.ska.mode=chunk)"
                )
        return self

    @model_validator(mode="after")
    def _gate_penalty_has_gates(self) -> "RunConfig":
        if self.train.gate_penalty and not self.model.resolve(vocab_size=512).has_write_gate:
            raise ValueError(
                f"train.gate_penalty={self.train.gate_penalty} needs SKA layers with a write gate: {self.model.preset} has none"
            )
        return self

    @model_validator(mode="after")
    def _recall_happens(self) -> "RunConfig":
        recall, rows = self.mixture.recall, self.train.steps * self.train.batch_sequences
        if recall and recall.share * rows < 1:
            raise ValueError(f"mixture.recall.share={recall.share} of the run's {rows:,} rows is not one: raise it")
        return self

    @model_validator(mode="after")
    def _zero_fits(self) -> "RunConfig":
        if self.run.zero_stage == 0:
            if self.train.precision == "bf16":
                raise ValueError("run.zero_stage=0 keeps no fp32 master weights for train.precision=bf16: use stage 1")
            if self.run.offload_optimizer:
                raise ValueError("run.zero_stage=0 cannot put the optimizer on the CPU: use stage 1, 2 or 3")
        return self

    def worker_counts(self) -> list[int]:
        """Permitted numbers of workers, ascending: those from `run.min_workers` to `run.workers` that divide the batch."""
        run, sequences = self.run, self.train.batch_sequences
        counts = []
        for workers in range(run.min_workers or run.workers, run.workers + 1):
            replicas, rest = divmod(workers, run.sequence_parallel)
            if rest == 0 and replicas and sequences % replicas == 0:
                rows = sequences // replicas
                if rows % (run.microbatch_sequences or rows) == 0:
                    counts.append(workers)
        return counts

    def identity_fields(self) -> dict[str, Any]:
        """Plain values of the sections that say what is trained."""
        return {key: value for key, value in self.resolved().items() if key in IDENTITY_SECTIONS}

    def identity(self) -> str:
        """SHA-256 of `identity_fields`, renamed keys under their first names."""
        return sha256_json({key: value for key, value in self.identity_dump().items() if key in IDENTITY_SECTIONS})

    def resolved(self) -> dict[str, Any]:
        """Plain values with every default filled in, except those of fields added since (`Config.added`)."""
        return self.model_dump(mode="json")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files(__package__).joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(recipe: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Load a recipe by name or a YAML file by path, with dotted overrides such as `train.steps=200`.

    Raises:
        UserError: no such recipe or file, not YAML, an unknown key, or a value of the wrong type.
    """
    return parse_config(*load_values(recipe, overrides))


def load_values(recipe: str | Path, overrides: list[str] | None = None) -> tuple[Any, str]:
    """The plain values of a recipe with its overrides, not yet checked, and where they are from; errors as `load_config`."""
    text, origin = _read_recipe(recipe)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{origin} is not valid YAML: {first_line(error)}") from error
    return apply_overrides(values, overrides or [], origin), origin


def apply_overrides(values: Any, overrides: list[str], origin: str) -> Any:
    """Plain values with dotted overrides (`train.steps=200`) applied.

    Raises:
        UserError: an override without a value, or one that does not fit the structure.
    """
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r} has no value: write it as section.key=value, e.g. train.steps=200")
    try:
        merged = OmegaConf.merge(OmegaConf.create(values or {}), OmegaConf.from_dotlist(overrides))
        refuse_resolvers(OmegaConf.to_container(merged, resolve=False), origin)
        return OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"overrides {' '.join(overrides)} do not fit {origin}: {first_line(error)}") from error


def parse_config(values: Any, origin: str) -> RunConfig:
    """Check plain values against `RunConfig`.

    Raises:
        UserError: naming the key, where it came from and the nearest valid key.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin} is not a mapping of sections: it must hold {', '.join(RunConfig.model_fields)}")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{origin}: {describe_validation_error(error, RunConfig)}") from error


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    write_text(path, yaml.safe_dump(config.resolved(), sort_keys=False))


def _read_recipe(recipe: str | Path) -> tuple[str, str]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"recipe {path} cannot be read: {first_line(error)}") from error
    if str(recipe) not in recipe_names():
        near = difflib.get_close_matches(str(recipe), recipe_names(), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"recipes: {', '.join(recipe_names())}"
        raise UserError(f"there is no recipe or run folder {str(recipe)!r}: {hint} (or name a .yaml file)")
    packaged = resources.files(__package__).joinpath("recipes", f"{recipe}.yaml")
    return packaged.read_text(encoding="utf-8"), f"recipe {recipe}"
