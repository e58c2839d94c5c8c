"""Training on recall tasks alone, for recall sweeps and for the adapted copies of suites.

Small models are bound by the host: on a GPU a step is recorded once as a CUDA graph and replayed, on a stream of the
trainer's own, so that dozens of trainers share one GPU and their kernels run side by side.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...data_prep.recall import RecallVocabulary, generate, num_queries, seeded_generator, task_of
from ...models import EchoLM, language_model_loss, parameter_groups
from ...models.common.errors import UserError
from ..measurements.prefix_mask import PrefixMasked
from .training_config import RecallTraining

LOOK_EVERY = 50  # interval, in steps at one length, of the test whether training may stop or go on to the next length
# The test takes the answers of the last LAST_STEPS steps, and of more steps until there are LAST_ANSWERS answers, since a share
# such as 99.95% of fewer answers is too imprecise.
LAST_STEPS, LAST_ANSWERS = 50, 2000
# Steps of each length before its graph is recorded: by then every kernel is compiled and every buffer exists.
EAGER_STEPS = 3
SMALLEST_RATE = 0.1
M = TypeVar("M", bound=EchoLM | PrefixMasked)


@dataclass(frozen=True)
class RecallBank:
    """All batches of a training at one length, kept on the device, so that a step needs no data from the host.

    Attributes:
        tokens: int32 `[n, B, L]`.
        at: int64 `[n, Q]`, where a label counts, in the flattened `B * L` tokens; labels: int64 `[n, Q]`.
        weight: float32 `[n, Q]`; 0 where a batch has less than Q queries.
    """

    tokens: Tensor
    at: Tensor
    labels: Tensor
    weight: Tensor


def recall_bank(
    training: RecallTraining, length: int, vocabulary: RecallVocabulary, generator: np.random.Generator, batches: int
) -> RecallBank:
    """Generate the batches of one length: equal parts of each task, with the number of pairs changing from step to step."""
    sequences, parts = training.batch_at(length), training.parts
    shares = [len(part) for part in np.array_split(np.arange(sequences), len(parts))]
    most = sum(
        share * num_queries(task, max(training.pairs)) * task_of(task).labels_per_query(**options)
        for (task, options), share in zip(parts, shares, strict=True)
    )
    tokens = np.empty((batches, sequences, length), np.int32)
    at, labels = np.zeros((2, batches, most), np.int64)
    weight = np.zeros((batches, most), np.float32)
    for i, pairs in enumerate(training.pairs):
        mine = np.arange(i, batches, len(training.pairs))
        row, column = 0, 0
        for (task, options), share in zip(parts, shares, strict=True):
            if not share * len(mine):
                continue
            found = generate(
                task,
                sequences=share * len(mine),
                length=length,
                pairs=pairs,
                generator=generator,
                vocabulary=vocabulary,
                **options,
            )
            evaluated = found.answers.shape[1] * share
            tokens[mine, row : row + share] = found.tokens.reshape(len(mine), share, length)
            positions = found.query_positions.reshape(len(mine), share, -1)
            positions = positions + length * np.arange(row, row + share)[:, None]
            part = (mine, slice(column, column + evaluated))
            at[part] = positions.reshape(len(mine), -1)
            labels[part] = found.answers.reshape(len(mine), -1)
            weight[part] = 1
            row, column = row + share, column + evaluated
    return RecallBank(*(torch.from_numpy(part) for part in (tokens, at, labels, weight)))


class AtLength:
    """A trainer's state at one length: the batches, how many of them were used, and on a GPU the recorded step that is replayed.

    Attributes:
        rates: fp32 `[n]`, the learning rate of each step.
        next: `taken`, as a recorded step reads it.
    """

    def __init__(self, bank: RecallBank, rates: Sequence[float]):
        self.bank, self.taken = bank, 0
        self.rates = torch.tensor(rates, device=bank.tokens.device)
        self.next = torch.zeros(1, dtype=torch.int64, device=bank.tokens.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def step_tokens(self) -> int:
        """The number of tokens of a step."""
        return self.bank.tokens[0].numel()

    @property
    def exhausted(self) -> bool:
        """Whether every batch was used."""
        return self.taken == len(self.bank.tokens)


class RecallTrainer(Generic[M]):
    """Trains a model by AdamW with betas 0.9 and 0.95, gradients clipped to norm 1; the batches depend on the seed alone.

    Attributes:
        losses: nats of an answer, fp32 `[steps]`; of steps to come 0.
        done, tokens: steps so far, and their tokens; finished: whether there is none to come.
    """

    def __init__(
        self,
        model: M,
        training: RecallTraining,
        vocabulary: RecallVocabulary,
        *,
        seed: int = 0,
        purpose: str = "training",
        device: torch.device | str = "cpu",
    ):
        """Prepare the training: generate the first batches and make the optimizer.

        Args:
            model: the model on `device`, which is trained in place.
            purpose: names the stream of sequences; evaluations use "evaluation".

        Raises:
            UserError: the pairs do not fit into one of the lengths, or `gate_penalty` is set for a model without write gates.
        """
        if training.gate_penalty and not model.config.has_write_gate:
            raise UserError("gate_penalty needs SKA layers with a write gate: this model has none")
        self.model, self.training = model.train(), training
        self.device = torch.device(device)
        self.done, self.tokens, self.finished = 0, 0, False
        self._vocabulary, self._purpose, self._seed = vocabulary, purpose, seed
        self._later = list(training.lengths) if training.lengthen_at is not None else []
        if self._later:
            self._now = [self._next_length()]
        else:
            self._now = [self._in_turn(i) for i in range(len(training.lengths))]
        self._rate = self._now[0].rates[0].clone()
        self._has_gate_penalty = training.gate_penalty > 0
        groups = parameter_groups(model, training.weight_decay)
        options = dict(fused=True, capturable=self.device.type == "cuda")
        self._optimizer = torch.optim.AdamW(groups, lr=self._rate, betas=(0.9, 0.95), **options)
        self._step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.losses = torch.zeros(training.steps, device=self.device)
        self._answers = torch.zeros(training.steps, 2, device=self.device)  # right answers, and all answers
        self._cooling = 0  # steps of the cooldown that are left
        self._share = torch.ones((), device=self.device)  # of the rate, which only the cooldown changes
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._wait_for_what_was_made()

    def advance(self) -> None:
        """Train one step. On a GPU it is only queued; `synchronize` waits for it."""
        at = self._now[self.done % len(self._now)]
        with torch.cuda.stream(self._stream):  # none on a CPU
            if self._cooling:
                self._share.fill_(self._cooling / (self.training.cooldown + 1))
            if at.graph is not None:
                at.graph.replay()
            else:
                self._train(at)
        if self._stream is not None and at.taken + 1 == EAGER_STEPS:
            at.graph = self._record(at, self._stream)
        at.taken += 1
        self.done += 1
        self.tokens += at.step_tokens
        enough = self.training.lengthen_at
        lengthen = enough is not None and bool(self._later) and (at.exhausted or self._has_learned(enough))
        del at  # the memory of a finished length is freed before the next length allocates its own
        if lengthen:
            self.synchronize()
            self._now.clear()
            self._now.append(self._next_length())
            self._wait_for_what_was_made()
        self.finished = self._is_spent() or (not self._later and self._stops())

    def _is_spent(self) -> bool:
        """Whether no step is left, or too few tokens for another."""
        upcoming = self._now[self.done % len(self._now)].step_tokens
        beyond = self.training.tokens is not None and self.tokens + upcoming > self.training.tokens
        return self.done == self.training.steps or beyond

    def _stops(self) -> bool:
        """Whether the step just done was the last of the cooldown, which begins once enough is learned."""
        if self._cooling:
            self._cooling -= 1
        elif self.training.stop_at is None or not self._has_learned(self.training.stop_at):
            return False
        else:
            self._cooling = self.training.cooldown
        return not self._cooling

    def _has_learned(self, share: float) -> bool:
        """Whether the required share of the last answers is right; on a GPU the host waits for the result."""
        steps = self._now[0].taken if self.training.lengthen_at is not None else self.done
        if steps % LOOK_EVERY:
            return False
        self.synchronize()
        latest = self._answers[self.done - steps : self.done].flip(0).cumsum(0).cpu()
        last = max(LAST_STEPS - 1, int((latest[:, 1] < LAST_ANSWERS).sum()))
        return last < steps and bool(latest[last, 0] >= share * latest[last, 1])

    def _in_turn(self, turn: int) -> AtLength:
        """The next of several lengths that take turns step by step."""
        training = self.training
        count = len(training.lengths)
        steps = range(turn, math.ceil(training.steps / count) * count, count)
        rates = [training.learning_rate * _rate(step, training.steps, training.schedule) for step in steps]
        return self._at_length(training.lengths[turn], rates)

    def _next_length(self) -> AtLength:
        """The next length of a curriculum, which gets half of the tokens left; the last one gets all."""
        training, length = self.training, self._later.pop(0)
        assert training.tokens is not None  # a curriculum shares them out
        sequences, first = training.batch_at(length), training.batch_at(training.lengths[0])
        left = (training.tokens - self.tokens) // (2 if self._later else 1)
        batches = max(1, left // (sequences * length))
        # Lower rates for batches of fewer sequences: Adam amplifies the noise of few answers, and takes large steps when
        # gradients suddenly grow.
        most = training.learning_rate * math.sqrt(sequences / first)
        rates = [most * _rate(step, batches, training.schedule) for step in range(batches)]
        # A length may come twice, with other sequences.
        return self._at_length(length, rates, len(self._later))

    def _at_length(self, length: int, rates: list[float], *place: int) -> AtLength:
        generator = seeded_generator(self._purpose, "recall bank", length, *place, self._seed)
        bank = recall_bank(self.training, length, self._vocabulary, generator, len(rates))
        return AtLength(RecallBank(*(part.to(self.device) for part in vars(bank).values())), rates)

    def _wait_for_what_was_made(self) -> None:
        """Let the trainer's stream wait for work queued on another one outside of steps, such as making the model."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def run(self) -> None:
        """Train all remaining steps."""
        while not self.finished:
            self.advance()
        self.synchronize()

    def synchronize(self) -> None:
        """Wait until every step so far is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def release(self) -> M:
        """Return the model in evaluation mode and free the memory that only training needs."""
        self.synchronize()
        self._now = []
        del self._optimizer
        self.model.zero_grad(set_to_none=True)
        return self.model.eval()

    def _train(self, at: AtLength) -> None:
        tokens, places, labels, weight = (part.index_select(0, at.next)[0] for part in vars(at.bank).values())
        self._rate.copy_(at.rates.index_select(0, at.next)[0] * self._share)
        self._optimizer.zero_grad(set_to_none=True)
        with precision_of(self.training, self.device):
            result = self.model(tokens.long(), logits_to_keep=places, return_gate_mean=self._has_gate_penalty)
        logits, gate_mean = result if self._has_gate_penalty else (result, None)
        total, count = language_model_loss(logits, labels, weight)
        loss = total / count
        (loss if gate_mean is None else loss + self._gate_penalty_now() * gate_mean).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.losses.index_copy_(0, self._step, loss.detach()[None])
        if self.training.stop_at is not None or self.training.lengthen_at is not None:
            right = ((logits.detach().argmax(-1) == labels) * weight).sum()
            self._answers.index_copy_(0, self._step, torch.stack((right, weight.sum()))[None])
        self._step += 1
        at.next += 1

    def _gate_penalty_now(self) -> Tensor | float:
        """The gate penalty of this step, in nats at a gate mean of 1."""
        if self.training.lengthen_at is None:
            first, full = self.training.gate_penalty_from, self.training.gate_penalty_full
            done = (self._step[0] + 1) / self.training.steps
            return self.training.gate_penalty * ((done - first) / (full - first)).clamp(min=0, max=1)
        return self.training.gate_penalty * (len(self._later) + 1 < len(self.training.lengths))

    def _record(self, at: AtLength, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        stream.synchronize()
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._train(at)
        return graph


def precision_of(training: RecallTraining, device: torch.device | str) -> AbstractContextManager:
    """The autocast context for forward passes, in a training and in the evaluation of its model."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=training.precision == "bf16")


def _rate(step: int, steps: int, schedule: str) -> float:
    """Factor on the learning rate: a linear warmup over a twentieth of the steps, then constant, or a cosine to a tenth."""
    warmup = max(1, steps // 20)
    if step < warmup or schedule == "constant":
        return min(1, (step + 1) / warmup)
    progress = min(1, (step - warmup) / max(1, steps - warmup))
    return SMALLEST_RATE + (1 - SMALLEST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
