"""The configuration of a training on recall alone, for recall sweeps and for the adapted copies of suites."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...data_prep.recall import MIXES
from ...models.common.config import Config, PositiveInts


class RecallTraining(Config):
    """Training on recall alone. The defaults are what a model that never saw recall gets, as a throw-away copy, before it
    is asked.
    """

    added = ("batch_tokens", "tokens", "precision", "lengthen_at", "stop_at", "cooldown", "gate_penalty")
    added += ("mix", "gate_penalty_from", "gate_penalty_full")
    renamed = "recall_training"

    steps: int = Field(default=500, gt=0)
    """Number of updates, at most."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = ("sysprompt", "tooltrace")
    """Names of recall tasks, in equal parts in every batch."""
    options: dict[str, dict[str, Any]] = Field(default={})
    """Options of each task's generator, by the task's name."""
    mix: str | None = None
    """Instead of `tasks` and `options`: the name of a mix of tasks (`data_prep/recall/mixes.py`), its parts in equal shares."""
    batch_sequences: int = Field(default=32, gt=0)
    """Sequences of a step."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Instead of `batch_sequences`: as many whole sequences a step as fit into so many tokens, at least one."""
    lengths: PositiveInts = (64,)
    """Lengths of a sequence in tokens, used in turn from step to step."""
    pairs: PositiveInts = (1, 2, 3, 4, 6, 8)
    """Numbers of key-value pairs in a sequence, used in turn from step to step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW, after a warmup over a twentieth of the steps."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after the warmup: "constant", or "cosine", which ends at a tenth."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format; "bf16" computes by autocast, with weights and AdamW in fp32."""
    tokens: int | None = Field(default=None, gt=0)
    """Training ends before the step that would take it beyond so many tokens."""
    lengthen_at: float | None = Field(default=None, gt=0, le=1)
    """A curriculum: training stays at each length until so large a share of its last answers is right, or half of the
    tokens that were left are spent, and goes on with the next. Each length has a warmup and a schedule of its own, and a
    share of `learning_rate` that falls with the square root of the sequences of a step."""
    stop_at: float | None = Field(default=None, gt=0, le=1)
    """Training ends when this share of its latest predictions is right (in a curriculum: at the last length). Each sequence is new,
    so this accuracy is that of an evaluation."""
    cooldown: int = Field(default=0, ge=0)
    """Steps after `stop_at` is reached in which the learning rate falls to zero; never beyond the budget of steps and tokens."""
    gate_penalty: float = Field(default=0.0, ge=0)
    """Nats added to the loss for write gates that are open at every position: nothing before `gate_penalty_from`, as a model
    must learn to write first, then growing to this at `gate_penalty_full`; in a curriculum nothing at the first length, all of
    it after."""
    gate_penalty_from: float = Field(default=0.5, ge=0, lt=1)
    """Share of the steps without a gate penalty."""
    gate_penalty_full: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps at which the gate penalty has grown to all of it."""

    @model_validator(mode="after")
    def _check(self):
        if self.mix is not None and self.mix not in MIXES:
            raise ValueError(f"mix is {self.mix!r}: choose one of {', '.join(MIXES)}")
        if (
            self.mix is not None
            and {"tasks", "options"} & self.model_fields_set
            and (self.tasks, self.options)
            != (
                type(self).model_fields["tasks"].default,
                {},
            )
        ):
            raise ValueError("mix brings its tasks and their options: leave out `tasks` and `options`")
        if self.gate_penalty_full <= self.gate_penalty_from:
            raise ValueError(
                f"gate_penalty grows from {self.gate_penalty_from} to {self.gate_penalty_full} of the steps: the second is the "
                "larger"
            )
        if self.gate_penalty and self.lengthen_at is None:
            for name in ("stop_at", "tokens"):
                if getattr(self, name) is not None:
                    raise ValueError(f"gate_penalty grows with the steps, which {name} cuts short: give one of the two")
        if self.lengthen_at is not None and self.tokens is None:
            raise ValueError("lengthen_at shares out `tokens`: give it a number of them")
        if self.tokens is not None:
            of_step = [self.batch_at(length) * length for length in self.lengths]
            if self.tokens < max(of_step):
                raise ValueError(f"tokens is {self.tokens:,}: a step takes up to {max(of_step):,}")
            if self.lengthen_at is not None and self.steps < self.tokens // min(of_step):
                raise ValueError(
                    f"{self.tokens:,} tokens may be {self.tokens // min(of_step):,} steps: steps is {self.steps:,}"
                )
        if self.cooldown and self.stop_at is None:
            raise ValueError("cooldown follows where the training stops: it needs `stop_at`")
        return self

    @property
    def parts(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """The tasks of a batch with their options, in equal shares."""
        if self.mix is not None:
            return MIXES[self.mix]
        return tuple((task, self.options.get(task, {})) for task in self.tasks)

    def batch_at(self, length: int) -> int:
        """Sequences of a step."""
        return self.batch_sequences if self.batch_tokens is None else max(1, self.batch_tokens // length)
