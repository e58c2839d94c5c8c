"""A model that learns recall tasks and nothing else: for the tables of recall, and for copies that learn the format.

Small models are bound by the host: on a GPU a step is recorded once as a CUDA graph and replayed, on a stream of the
trainer's own, so that dozens of trainers share one GPU and their kernels run side by side.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data_prep.recall import RecallVocabulary, generate, num_queries, seeded_generator
from ..models import language_model_loss, parameter_groups
from .config import RecallTraining
from .write_cost import WriteCost

LOOK_EVERY = 50  # steps, whether the training may stop
# A graph is recorded after so many steps of each length: by then every kernel is compiled and every buffer exists.
EAGER_STEPS = 3
SMALLEST_RATE = 0.1


@dataclass(frozen=True)
class RecallBank:
    """Every batch of a training at one length, so that a step needs nothing from the host.

    Attributes:
        tokens: int32 `[n, B, L]`.
        at: int64 `[n, Q]`, where a label counts, in the flattened `B * L` tokens; labels: int64 `[n, Q]`.
        weight: float32 `[n, Q]`; 0 where a batch asks less than Q questions.
    """

    tokens: Tensor
    at: Tensor
    labels: Tensor
    weight: Tensor


def recall_bank(
    training: RecallTraining, length: int, vocabulary: RecallVocabulary, generator: np.random.Generator
) -> RecallBank:
    """The batches of one length, the tasks in equal parts in each; step by step the next number of pairs."""
    batches = math.ceil(training.steps / len(training.lengths))
    shares = [len(part) for part in np.array_split(np.arange(training.batch_sequences), len(training.tasks))]
    most = sum(
        share * num_queries(task, max(training.pairs)) for task, share in zip(training.tasks, shares, strict=True)
    )
    tokens = np.empty((batches, training.batch_sequences, length), np.int32)
    at, labels = np.zeros((2, batches, most), np.int64)
    weight = np.zeros((batches, most), np.float32)
    for i, pairs in enumerate(training.pairs):
        mine = np.arange(i, batches, len(training.pairs))
        row, column = 0, 0
        for task, share in zip(training.tasks, shares, strict=True):
            if not share * len(mine):
                continue
            found = generate(
                task,
                sequences=share * len(mine),
                length=length,
                pairs=pairs,
                generator=generator,
                vocabulary=vocabulary,
                **training.options.get(task, {}),
            )
            asked = found.answers.shape[1] * share
            tokens[mine, row : row + share] = found.tokens.reshape(len(mine), share, length)
            positions = found.query_positions.reshape(len(mine), share, -1)
            positions = positions + length * np.arange(row, row + share)[:, None]
            part = (mine, slice(column, column + asked))
            at[part] = positions.reshape(len(mine), -1)
            labels[part] = found.answers.reshape(len(mine), -1)
            weight[part] = 1
            row, column = row + share, column + asked
    return RecallBank(*(torch.from_numpy(part) for part in (tokens, at, labels, weight)))


class RecallTrainer:
    """AdamW (0.9, 0.95), gradients clipped to 1, on batches that the seed alone decides.

    Attributes:
        losses: nats of an answer, fp32 `[steps]`; of steps to come 0.
        done: steps so far; finished: whether there is none to come.
    """

    def __init__(
        self,
        model: nn.Module,
        training: RecallTraining,
        vocabulary: RecallVocabulary,
        *,
        seed: int = 0,
        purpose: str = "training",
        device: torch.device | str = "cpu",
    ):
        """
        Args:
            model: on `device`; trained in place.
            purpose: names the stream of sequences; evaluations use "evaluation".

        Raises:
            UserError: a task refuses these pairs at one of these lengths.
        """
        self.model, self.training = model.train(), training
        self.device = torch.device(device)
        self._banks = []
        for length in training.lengths:
            bank = recall_bank(training, length, vocabulary, seeded_generator(purpose, "recall bank", length, seed))
            self._banks.append(RecallBank(*(part.to(self.device) for part in vars(bank).values())))
        self._rates = torch.tensor(
            [training.learning_rate * _rate(step, training) for step in range(training.steps)], device=self.device
        )
        self._rate = self._rates[0].clone()
        groups = parameter_groups(model, training.weight_decay)
        options = dict(fused=True, capturable=self.device.type == "cuda")
        self._optimizer = torch.optim.AdamW(groups, lr=self._rate, betas=(0.9, 0.95), **options)
        self._cost = WriteCost(model) if training.write_cost else None
        self._step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.losses = torch.zeros(training.steps, device=self.device)
        self._right = torch.zeros(training.steps, device=self.device)  # share of answers
        self.done, self.finished = 0, False
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if self._stream is not None:
            # What was made above, and the model, were queued on another stream.
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def advance(self) -> None:
        """One step. On a GPU it is only queued: `synchronize` waits for it."""
        which = self.done % len(self._banks)
        if self._stream is None:
            self._train(self._banks[which])
        else:
            with torch.cuda.stream(self._stream):
                if which in self._graphs:
                    self._graphs[which].replay()
                else:
                    self._train(self._banks[which])
            if self.done // len(self._banks) + 1 == EAGER_STEPS:
                self._graphs[which] = self._record(self._banks[which])
        self.done += 1
        self.finished = self.done == self.training.steps or self._has_learned()

    def _has_learned(self) -> bool:
        """Whether `stop_at` is reached. To know it a GPU is waited for."""
        if self.training.stop_at is None or self.done % LOOK_EVERY:
            return False
        self.synchronize()
        return self._right[self.done - LOOK_EVERY : self.done].mean().item() >= self.training.stop_at

    @property
    def tokens(self) -> int:
        """Tokens of the steps so far."""
        lengths = self.training.lengths
        rounds, rest = divmod(self.done, len(lengths))
        return self.training.batch_sequences * (rounds * sum(lengths) + sum(lengths[:rest]))

    def run(self) -> None:
        """All steps that are left."""
        while not self.finished:
            self.advance()
        self.synchronize()

    def synchronize(self) -> None:
        """Wait until every step so far is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def release(self) -> nn.Module:
        """The model, in evaluation mode; what only training needs is given back."""
        self.synchronize()
        self._graphs, self._banks, self._optimizer = {}, [], None
        if self._cost is not None:
            self._cost.remove()
        self.model.zero_grad(set_to_none=True)
        return self.model.eval()

    def _train(self, bank: RecallBank) -> None:
        index = self._step // len(self._banks)
        tokens, at, labels, weight = (part.index_select(0, index)[0] for part in vars(bank).values())
        self._rate.copy_(self._rates.index_select(0, self._step)[0])
        self._optimizer.zero_grad(set_to_none=True)
        with precision_of(self.training, self.device):
            logits = self.model(tokens.long(), at=at)
        total, count = language_model_loss(logits, labels, weight)
        loss = total / count
        if self._cost is None:
            loss.backward()
        else:
            grown = (2 * (self._step[0] + 1) / self.training.steps - 1).clamp(min=0)
            (loss + self.training.write_cost * grown * self._cost.take()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.losses.index_copy_(0, self._step, loss.detach()[None])
        if self.training.stop_at is not None:
            right = ((logits.detach().argmax(-1) == labels) * weight).sum() / weight.sum()
            self._right.index_copy_(0, self._step, right[None])
        self._step += 1

    def _record(self, bank: RecallBank) -> torch.cuda.CUDAGraph:
        self._stream.synchronize()
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._train(bank)
        return graph


def precision_of(training: RecallTraining, device: torch.device | str) -> AbstractContextManager:
    """What the forward passes of a training, and of questions to what it trained, are to run in."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=training.precision == "bf16")


def _rate(step: int, training: RecallTraining) -> float:
    """Share of the learning rate: a linear warmup over a twentieth of the steps, then constant, or a cosine to a tenth."""
    warmup = max(1, training.steps // 20)
    if step < warmup or training.schedule == "constant":
        return min(1, (step + 1) / warmup)
    progress = (step - warmup) / max(1, training.steps - warmup)
    return SMALLEST_RATE + (1 - SMALLEST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
