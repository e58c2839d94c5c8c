"""All sections of a run's configuration except `train`: the model, the start, the execution, the evaluations."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ...models import ModelConfig, preset
from ...models.common.config import Config
from ...models.common.durations import duration_seconds
from ...models.common.errors import UserError


class ModelSection(Config, extra="allow"):
    """A preset by name; every other key overrides a field of its `ModelConfig`. The vocabulary comes from the tokenizer."""

    added = ("preset_version",)

    preset: str
    """Name of a preset, a family and a size such as `echo-1m`; `echo-lm models` lists them."""
    preset_version: int = 1
    """What the preset's name means: 2 writes SKA layers a position late, 1 is what it meant before 30 November 2026. A recipe that
    leaves it out gets the latest; a run folder keeps the version that it was made with, which is 1 if its file names none."""

    @model_validator(mode="after")
    def _builds(self) -> "ModelSection":
        self.resolve(vocab_size=512)
        return self

    def resolve(self, vocab_size: int) -> ModelConfig:
        """The model's full configuration for a tokenizer of `vocab_size` entries."""
        overrides = dict(self.model_extra or {})
        if "vocab_size" in overrides:
            raise UserError("model.vocab_size is set by the tokenizer: set data.tokenizer.vocab_size instead")
        return preset(self.preset, preset_version=self.preset_version, vocab_size=vocab_size, **overrides)


class StartFromSection(Config):
    """Where a run begins, if not with fresh weights: a checkpoint of another run, or a folder of weights."""

    run: str | None = None
    """Folder of the run to begin from."""
    weights: str | None = None
    """Instead of `run`: a folder with `model.safetensors` and `config.json`, such as `model/` of a checkpoint."""
    step: int | Literal["latest"] = Field(default="latest")
    """Step of the checkpoint; "latest" takes the newest one that exists when the folder of the new run is made."""
    what: Literal["weights", "optimizer", "everything"] = "weights"
    """What is taken: "weights"; "optimizer", weights and AdamW's moments; "everything", also the position: steps, schedule and
    data go on."""
    content: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Hash that the files taken must have, as `echo-lm branch` writes it; a parent that has moved is found by it."""

    @model_validator(mode="after")
    def _one_source(self) -> "StartFromSection":
        if (self.run is None) == (self.weights is None):
            raise ValueError("give one of run (a run folder) and weights (a folder with model.safetensors)")
        if self.weights is not None and (self.what != "weights" or self.step != "latest"):
            raise ValueError(
                "a folder of weights has neither steps nor an optimizer: leave step and what out, or name run"
            )
        return self


class KeepBestSection(Config):
    """Which checkpoint counts as the best."""

    metric: str
    """Name of a metric in the results of the evaluations, such as `language/bits_per_byte`."""
    higher: bool = False
    """Whether higher is better, as for accuracies."""


class RunSection(Config):
    """Execution settings: workers, ZeRO, checkpoints, restarts. They may change on resume and alter results only by rounding."""

    added = ("checkpoint_minutes", "checkpoint_steps", "keep_models", "keep_best", "time_limit", "cuda_graphs")

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
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    """Write a checkpoint also when the last one is so many minutes old."""
    checkpoint_steps: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Write checkpoints also after these steps, which stay resumable: others can branch from them."""
    checkpoint_beside_training: bool = True
    """Write a checkpoint while the next steps train."""
    keep_checkpoints: int | None = Field(default=None, gt=0)
    """How many of the newest checkpoints stay resumable; null keeps all."""
    keep_every: int | None = Field(default=None, gt=0)
    """Checkpoints of every so many steps stay resumable too."""
    keep_models: int | None = Field(default=None, gt=0)
    """How many of the newest checkpoints keep their weights (`model/`); older ones are removed, but for those of `keep_every` and
    `keep_best`. Evaluations must have read them by then. null keeps all."""
    keep_best: KeepBestSection | None = None
    """The best checkpoint by an evaluation is not removed, and stays resumable if it still is when its result comes."""
    health_every: int = Field(default=100, ge=0)
    """Steps between measurements of the SKA layers' health; 0 turns them off."""
    rollback_after: int = Field(default=5, gt=0)
    """Steps in a row without a finite gradient before training goes back to the last checkpoint."""
    stop_step: int | None = Field(default=None, gt=0)
    """Save a checkpoint and stop after this step."""
    time_limit: str | None = None
    """Save a checkpoint and stop this long after the command began, such as "3h55m"."""
    threads: int = Field(default=1, gt=0)
    """CPU threads of a worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the workers compute; "auto" takes GPUs where there are some."""
    max_restarts: int = Field(default=3, ge=0)
    """How many restarts in a row are made after failures without a new checkpoint in between."""
    hang_seconds: float = Field(default=600, gt=0)
    """A worker without a heartbeat for so many seconds, or a worker group without a step, is replaced."""
    straggler_factor: float = Field(default=2.0, ge=0)
    """A worker that computes so many times longer than the median is reported; 0 turns this off."""
    cluster_wait_seconds: float = Field(default=1800, gt=0)
    """How long `run --address` waits for a cluster that does not answer."""
    master_port: int | None = Field(default=None, gt=0, lt=65536)
    """Port at which the workers of `train` meet; null takes a free one."""

    @field_validator("time_limit")
    @classmethod
    def _is_a_time(cls, text: str | None) -> str | None:
        if text is not None:
            duration_seconds(text)
        return text

    @model_validator(mode="after")
    def _models_outlive_engines(self) -> "RunSection":
        if self.keep_models is not None and self.keep_models < (self.keep_checkpoints or self.keep_models + 1):
            raise ValueError(
                f"keep_models={self.keep_models} is less than keep_checkpoints={self.keep_checkpoints or 'all'}: a checkpoint "
                "without weights cannot be resumed"
            )
        return self


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
