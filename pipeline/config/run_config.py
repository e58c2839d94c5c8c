"""`RunConfig`, the complete configuration of a run, with the checks that involve several sections."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from ...data_prep.config import DatasetConfig, MixtureConfig
from ...models.accounting import segment_messages
from ...models.common.config import Config
from ...models.common.files import sha256_json
from .sections import EvaluationSection, ModelSection, RunSection, StartFromSection
from .train import TrainSection

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
IDENTITY_SECTIONS = ("seed", "data_seed", "start_from", "data", "mixture", "model", "train")
AMENDABLE_SECTIONS = ("train", "mixture", "data_seed")  # those of the sections that `--amend` may change


class RunConfig(Config):
    """The complete configuration of a run. See `docs/guides/recipes.md` for a tour."""

    added = ("data_seed", "start_from")

    name: RunName
    """Name of the run, and of its folder below the folder of runs."""
    seed: int = 0
    """Seed of weights, batch order and recall sequences."""
    data_seed: int | None = None
    """Another seed for batch order and recall sequences; null takes `seed`."""
    start_from: StartFromSection | None = None
    """Where the run begins; null begins with fresh weights."""
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
        for _, batch in train.batch_stages:
            sequences = batch // train.sequence_length
            rows, rest = divmod(sequences, replicas)
            if rest:
                shared = f" / run.sequence_parallel={run.sequence_parallel}" if run.sequence_parallel > 1 else ""
                raise ValueError(
                    f"a batch of {sequences} sequences does not divide among run.workers={run.workers}{shared}"
                )
            if rows % min(run.microbatch_sequences or rows, rows):
                raise ValueError(
                    f"a rank's {rows} sequences do not divide into run.microbatch_sequences={run.microbatch_sequences}"
                )
        segment, rest = divmod(train.sequence_length, run.sequence_parallel)
        if rest:
            raise ValueError(
                f"train.sequence_length={train.sequence_length} is not a multiple of "
                f"run.sequence_parallel={run.sequence_parallel}"
            )
        model = self.model.resolve(vocab_size=512)
        if run.sequence_parallel > 1:
            segment_messages(model, segment)  # refuses mixers without a form for segments
        for ska in model.ska_sections():
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
        recall, rows = self.mixture.recall, self.train.tokens_before(self.train.steps) // self.train.sequence_length
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
        """Permitted numbers of workers, ascending: those from `run.min_workers` to `run.workers` that divide every batch."""
        run, sequences = (
            self.run,
            self.train.batch_stages[0][1] // self.train.sequence_length,
        )  # others are multiples of it
        counts = []
        for workers in range(run.min_workers or run.workers, run.workers + 1):
            replicas, rest = divmod(workers, run.sequence_parallel)
            if rest == 0 and replicas and sequences % replicas == 0:
                rows = sequences // replicas
                if rows % min(run.microbatch_sequences or rows, rows) == 0:
                    counts.append(workers)
        return counts

    @property
    def order_seed(self) -> int:
        """Seed of the batch order and the recall sequences."""
        return self.seed if self.data_seed is None else self.data_seed

    def identity_fields(self) -> dict[str, Any]:
        """Plain values of the sections that say what is trained."""
        return {key: value for key, value in self.resolved().items() if key in IDENTITY_SECTIONS}

    def identity(self) -> str:
        """SHA-256 of `identity_fields`, renamed keys under their first names."""
        return sha256_json({key: value for key, value in self.identity_dump().items() if key in IDENTITY_SECTIONS})

    def resolved(self) -> dict[str, Any]:
        """Plain values with every default filled in, except those of fields added since (`Config.added`)."""
        return self.model_dump(mode="json")
