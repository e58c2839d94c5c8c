"""The section `train` of a run's configuration: hyperparameters, horizon and schedule."""

from bisect import bisect_right
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ...models.common.config import Config


class BatchRampSection(Config):
    """A batch that begins small and doubles until it is `train.batch_tokens`. Its length is given in steps or in tokens."""

    start: int = Field(gt=0)
    """Tokens of the first batches; `train.batch_tokens` is 2, 4, 8 or another power of two times as many."""
    tokens: int | None = Field(default=None, gt=0)
    """Tokens until the batch has its full size; each smaller size has the same share, rounded up to whole batches."""
    steps: int | None = Field(default=None, gt=0)
    """Instead of `tokens`: that many steps."""

    @model_validator(mode="after")
    def _one_length(self) -> "BatchRampSection":
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give one of tokens and steps: how long the batch grows")
        return self

    def stages(self, full: int) -> tuple[tuple[int, int], ...]:
        """First step and tokens of a batch of each stage, up to a batch of `full` tokens.

        Raises:
            ValueError: `full` is no power of two times `start`, or there are fewer steps than sizes.
        """
        doublings = (full // self.start).bit_length() - 1
        if doublings < 1 or self.start << doublings != full:
            raise ValueError(f"batch_tokens={full} is not 2, 4, 8 ... times batch_ramp.start={self.start}")
        stages, tokens = [(0, self.start)], 0
        for number in range(1, doublings + 1):
            first, batch = stages[-1]
            if self.steps is not None:
                steps = -(-self.steps * number // doublings) - first
            else:
                assert self.tokens is not None  # one of the two is given
                steps = -(-(self.tokens * number // doublings - tokens) // batch)
            if steps < 1:
                raise ValueError(
                    f"batch_ramp is too short for {doublings} sizes below batch_tokens={full}: lengthen it"
                )
            tokens += steps * batch
            stages.append((first + steps, 2 * batch))
        return tuple(stages)


class TrainSection(Config):
    """Hyperparameters of the training. Horizon and warmup are given in steps or in tokens."""

    added = ("gate_penalty", "batch_ramp", "tokens", "warmup_steps", "decay_steps", "decay_shape", "ema_decay")
    renamed = "train"

    sequence_length: int = Field(gt=0)
    """Tokens of a row."""
    batch_tokens: int = Field(gt=0)
    """Tokens of a batch, all workers together; a multiple of `sequence_length`."""
    batch_ramp: BatchRampSection | None = None
    """Begin with smaller batches, counted from step 0 on; null has one size from the first step on."""
    steps: int = Field(gt=0)
    """Number of updates: the horizon of the learning-rate schedule, and where training ends. A run that goes on from another
    one's step (`start_from`) counts from that one's beginning."""
    tokens: int | None = Field(default=None, gt=0)
    """Instead of `steps`: that many tokens, rounded up to whole batches. Stored as `steps`."""
    learning_rate: float = Field(gt=0)
    """Peak of the learning rate."""
    final_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """The learning rate at the last step, as a fraction of the peak."""
    schedule: Literal["cosine", "warmup-stable-decay", "constant"] = "cosine"
    """Course of the learning rate after the warmup: "cosine"; "warmup-stable-decay", which holds the peak until it decays;
    "constant", which holds it to the end: a trunk, from which cooldowns branch."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """The share of the steps that "warmup-stable-decay" decays in."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Instead of `decay_fraction`: the number of steps."""
    decay_shape: Literal["linear", "1-sqrt"] = "linear"
    """Course of the decay of "warmup-stable-decay": "linear", or "1-sqrt", which falls by the square root of its progress."""
    warmup_tokens: int = Field(default=0, ge=0)
    """Tokens over which the learning rate grows from zero to its peak."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Instead of `warmup_tokens`: that many steps. Stored as `warmup_tokens`."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """The gradient is scaled down to at most this norm; 0 turns it off."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of log(Z)^2 in the loss, which keeps the logits from drifting."""
    gate_penalty: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Gate penalty: nats per token added to the loss at a gate mean of 1 of the SKA layers; none in the first half of the steps,
    growing to this value at the last."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the weights with this decay, evaluated beside them; null keeps none. In the first steps
    the decay is lower."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format; "bf16" computes in bf16 and keeps fp32 master weights."""

    @model_validator(mode="before")
    @classmethod
    def _one_unit(cls, values: Any) -> Any:
        """Convert `tokens` to `steps` and `warmup_steps` to `warmup_tokens`, so that only one of each pair is stored."""
        batch = values.get("batch_tokens") if isinstance(values, dict) else None
        if not isinstance(batch, int) or batch <= 0:
            return values
        values = dict(values)
        try:
            ramp = values.get("batch_ramp")
            stages = _Stages(BatchRampSection.model_validate(ramp).stages(batch) if ramp else ((0, batch),))
        except (ValidationError, ValueError):  # the validation of the fields reports it
            return values
        for given, stored in (("tokens", "steps"), ("warmup_steps", "warmup_tokens")):
            number = values.get(given)
            if not isinstance(number, int) or number < 0:
                continue
            if values.get(stored) is not None:
                raise ValueError(f"{given} and {stored} say the same: give one of them and set the other to null")
            values[stored] = stages.steps_of(number) if given == "tokens" else stages.tokens_before(number)
            del values[given]
        return {key: value for key, value in values.items() if value is not None or key != "warmup_tokens"}

    @model_validator(mode="after")
    def _decay_fits(self) -> "TrainSection":
        if self.decay_steps is not None and self.schedule != "warmup-stable-decay":
            raise ValueError(
                f"decay_steps={self.decay_steps} needs schedule=warmup-stable-decay: it is {self.schedule}"
            )
        if self.decay_steps is not None and self.decay_steps > self.steps:
            raise ValueError(f"decay_steps={self.decay_steps} is more than steps={self.steps}")
        return self

    @model_validator(mode="after")
    def _whole_sequences(self) -> "TrainSection":
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is not a multiple of sequence_length={self.sequence_length}"
            )
        return self

    @model_validator(mode="after")
    def _ramp_fits(self) -> "TrainSection":
        if self.batch_ramp is None:
            return self
        if self.batch_ramp.start % self.sequence_length:
            raise ValueError(
                f"batch_ramp.start={self.batch_ramp.start} is not a multiple of sequence_length={self.sequence_length}"
            )
        last, _ = self.batch_stages[-1]
        if last >= self.steps:
            raise ValueError(
                f"batch_ramp reaches batch_tokens={self.batch_tokens} at step {last}, not before steps={self.steps}"
            )
        return self

    @property
    def batch_sequences(self) -> int:
        """Sequences in a batch, all ranks together."""
        return self.batch_tokens // self.sequence_length

    @property
    def batch_stages(self) -> tuple[tuple[int, int], ...]:
        """First step and tokens of a batch of each stage; a single one without a ramp."""
        return self._stages.stages

    def tokens_before(self, step: int) -> int:
        """Tokens of the first `step` batches."""
        return self._stages.tokens_before(step)

    @property
    def steps_of_warmup(self) -> int:
        """Steps of linear warmup, rounded up."""
        return self._stages.steps_of(self.warmup_tokens)

    @property
    def _stages(self) -> "_Stages":
        return _Stages(self.batch_ramp.stages(self.batch_tokens) if self.batch_ramp else ((0, self.batch_tokens),))

    @property
    def steps_of_decay(self) -> int:
        """Steps in which the learning rate falls at the end; 0 with a constant one."""
        if self.schedule == "constant":
            return 0
        if self.schedule == "cosine":
            return max(0, self.steps - self.steps_of_warmup)
        return self.decay_steps or max(1, round(self.decay_fraction * self.steps))


class _Stages:
    """Conversion between steps and tokens for a run whose batch size changes in stages."""

    def __init__(self, stages: tuple[tuple[int, int], ...]):
        self.stages = stages
        self._tokens = [0]  # before each stage
        for (first, batch), (following, _) in pairwise(stages):
            self._tokens.append(self._tokens[-1] + (following - first) * batch)

    def tokens_before(self, step: int) -> int:
        """Tokens of the first `step` batches."""
        number = bisect_right(self.stages, step, key=lambda stage: stage[0]) - 1
        first, batch = self.stages[number]
        return self._tokens[number] + (step - first) * batch

    def steps_of(self, tokens: int) -> int:
        """The number of steps after which at least the given number of tokens has been read."""
        number = bisect_right(self._tokens, tokens) - 1
        first, batch = self.stages[number]
        return first - (-(tokens - self._tokens[number]) // batch)
