"""The batch order: `batch(step)` is a pure function of the dataset, the mixture, the seed and the step."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from ...models.common.errors import UserError
from ..config import MixtureConfig, RecallMixtureConfig
from ..preparing.tokenizer import reserved_start
from ..recall import RecallVocabulary, generate, seeded_generator
from .batch import Batch
from .dataset import Dataset
from .text_rows import Row, TextRows


@dataclass(frozen=True)
class SourceUse:
    """What a run takes from a source: `epochs` is how often it sees the source's text; None where nothing repeats."""

    name: str
    share: float
    tokens: int
    epochs: float | None


class BatchLoader:
    """Batches of `batch_sequences` rows of `sequence_length` tokens, mixed of text and recall inside each batch.

    Recall rows are spread evenly over all rows of a run: any stretch of rows, be it a rank's or a step's, holds its share to
    within one row, and a batch too small for its share holds a recall row every few steps.

    Nothing is kept from step to step: any process can compute any step, and a resumed run repeats the same batches.

    Args:
        dataset: the text, and the tokenizer whose reserved tokens the recall rows are written in; None for recall
            alone, in a vocabulary of its own that starts at 0.
        mixture: what the rows are.
        sequence_length: tokens of a row, `T`.
        batch_sequences: rows of the whole batch, all ranks together, `B`.
        seed: chooses the order of the text and the recall sequences.

    Raises:
        UserError: the mixture does not fit the dataset or the sequence length.
    """

    def __init__(
        self,
        dataset: Dataset | None,
        mixture: MixtureConfig,
        *,
        sequence_length: int,
        batch_sequences: int,
        seed: int,
    ) -> None:
        if sequence_length < 1 or batch_sequences < 1:
            raise UserError(f"a batch of {batch_sequences} rows of {sequence_length} tokens: both must be at least 1")
        self.mixture, self.seed = mixture, seed
        self.sequence_length, self.batch_sequences = sequence_length, batch_sequences
        recall = mixture.recall
        if recall and max(recall.lengths) > sequence_length:
            raise UserError(
                f"recall sequences of {max(recall.lengths)} tokens do not fit a row of {sequence_length}: "
                "lower recall.lengths or raise the sequence length"
            )
        # Of a share, the decimal number that was written: as a binary fraction 0.05 of 20 rows would miss a row now and then.
        self.recall_share = Fraction(str(recall.share)) if recall else Fraction(0)

        self.whole_rows = bool(recall) and self.recall_share == 1 and set(recall.lengths) == {sequence_length}
        if dataset is None and self.recall_share < 1:
            raise UserError("a mixture with text needs a dataset: name one, or set recall.share to 1")
        self.vocabulary = RecallVocabulary(reserved_start(dataset.tokenizer()) if dataset and recall else 0)
        self.text: TextRows | None = None
        if dataset and self.recall_share < 1:
            self.text = TextRows(dataset, mixture, sequence_length=sequence_length, seed=seed)

    def batch(self, step: int) -> Batch:
        """The whole batch of a step, from 0; `.rows(rank, world_size)` is what one rank takes."""
        first = step * self.batch_sequences
        recall_rows = [self._recall_rows(first + i) for i in range(self.batch_sequences + 1)]
        flags = np.diff(recall_rows).astype(bool)
        text_index = first - recall_rows[0]
        rows = []
        for i, is_recall in enumerate(flags):
            if is_recall:
                assert self.mixture.recall is not None
                rows.append(self._recall_row(self.mixture.recall, step, i))
            else:
                assert self.text is not None
                rows.append(self.text[text_index])
                text_index += 1
        borders = [row.borders + i * self.sequence_length for i, row in enumerate(rows)]
        end = len(rows) * self.sequence_length
        return Batch(
            tokens=torch.from_numpy(np.stack([row.tokens for row in rows])),
            labels=torch.from_numpy(np.stack([row.labels for row in rows])),
            loss_mask=torch.from_numpy(np.stack([row.loss_mask for row in rows])),
            cu_seqlens=torch.from_numpy(np.concatenate([*borders, [end]]).astype(np.int32)),
            is_recall=torch.from_numpy(flags),
            whole_rows=self.whole_rows,
        )

    def describe(self, steps: int) -> list[SourceUse]:
        """What `steps` steps take from every source of text and from the recall generators, on average."""
        uses, rows = [], steps * self.batch_sequences
        recall_share = float(self.recall_share)
        if self.text:
            total = sum(self.text.quotas)
            for name, quota, windows in zip(self.text.names, self.text.quotas, self.text.windows, strict=True):
                share = (1 - recall_share) * quota / total
                uses.append(SourceUse(name, share, round(rows * share * self.sequence_length), rows * share / windows))
        if recall_share:
            uses.append(SourceUse("recall", recall_share, round(rows * recall_share * self.sequence_length), None))
        return uses

    def _recall_rows(self, rows: int) -> int:
        """How many of the run's first rows are recall."""
        return int(rows * self.recall_share)

    def _recall_row(self, recall: RecallMixtureConfig, step: int, row: int) -> Row:
        """As many sequences of one task, length and number of pairs as fit; each is a document of its own.

        What is left at the end of the row is a document of noise that no loss counts.
        """
        generator = seeded_generator("training", "recall", self.seed, step, row)
        task = recall.tasks[generator.integers(len(recall.tasks))]
        length = recall.lengths[generator.integers(len(recall.lengths))]
        pairs = recall.pairs[generator.integers(len(recall.pairs))]
        sequences, rest = divmod(self.sequence_length, length)
        found = generate(
            task, sequences=sequences, length=length, pairs=pairs, generator=generator, vocabulary=self.vocabulary
        )
        noise = self.vocabulary.draw(self.vocabulary.seen_noise, (rest,), generator)
        return Row(
            tokens=np.append(found.tokens, noise),
            labels=np.append(found.labels, np.zeros(rest, dtype=np.int64)),
            loss_mask=np.append(found.loss_mask * np.float32(recall.loss_weight), np.zeros(rest, dtype=np.float32)),
            borders=np.arange(0, self.sequence_length, length),
        )
