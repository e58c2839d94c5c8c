"""The batch order: `batch(step)` is a pure function of the dataset, the mixture, the seed and the step."""

from collections.abc import Mapping
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
    """The use of a source by a run: `epochs` is how often its text is repeated; None for generated recall."""

    name: str
    share: float
    tokens: int
    epochs: float | None


def has_whole_rows(recall: RecallMixtureConfig | None, sequence_length: int) -> bool:
    """Whether no document begins inside a row: all rows are recall sequences as long as a row."""
    # Exact: see `BatchLoader.recall_share`.
    return recall is not None and Fraction(str(recall.share)) == 1 and set(recall.lengths) == {sequence_length}


class BatchLoader:
    """Loads batches of `batch_sequences` rows of `sequence_length` tokens, text and recall mixed inside each batch.

    Recall rows are spread evenly over all rows of a run: any stretch of rows, of a rank or a step, holds its share to within
    one row; a batch too small for its share has a recall row every few steps.

    The loader is stateless: any process can compute any step, and a resumed run repeats the same batches.

    Args:
        dataset: the text, and the tokenizer with the reserved tokens of recall rows; None for recall alone, with a
            vocabulary that starts at id 0.
        mixture: the shares of text sources and recall.
        sequence_length: tokens of a row, `T`.
        batch_sequences: rows of the whole batch, all ranks together, `B`.
        seed: of the order of the text and of the recall sequences.
        first_step: the step at which this order begins; 0 unless the configuration of a run changes on the way.
        first_row: the number of the first row of that step.
        starts: rows of each source, by name, that were read before row 0.

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
        first_step: int = 0,
        first_row: int = 0,
        starts: Mapping[str, int] | None = None,
    ) -> None:
        if sequence_length < 1 or batch_sequences < 1:
            raise UserError(f"a batch of {batch_sequences} rows of {sequence_length} tokens: both must be at least 1")
        self.mixture, self.seed = mixture, seed
        self.sequence_length, self.batch_sequences = sequence_length, batch_sequences
        self.first_step, self.first_row = first_step, first_row
        recall = mixture.recall
        if recall and max(recall.lengths) > sequence_length:
            raise UserError(
                f"recall sequences of {max(recall.lengths)} tokens do not fit a row of {sequence_length}: "
                "lower recall.lengths or raise the sequence length"
            )
        # Computed with the exact decimal number: in binary floating point, 0.05 of 20 rows could round down to none.
        self.recall_share = Fraction(str(recall.share)) if recall else Fraction(0)

        self.whole_rows = has_whole_rows(recall, sequence_length)
        if dataset is None and self.recall_share < 1:
            raise UserError("a mixture with text needs a dataset: name one, or set recall.share to 1")
        self.vocabulary = RecallVocabulary(reserved_start(dataset.tokenizer()) if dataset and recall else 0)
        self.text: TextRows | None = None
        if dataset and self.recall_share < 1:
            self.text = TextRows(dataset, mixture, sequence_length=sequence_length, seed=seed, starts=starts)

    def batch(self, step: int) -> Batch:
        """The whole batch of a step, from 0; `.rows(rank, world_size)` selects the rows of a rank."""
        first = self.row_of(step)
        recall_rows = [self._recall_rows(first + i) for i in range(self.batch_sequences + 1)]
        flags = np.diff(recall_rows).astype(bool)
        text_index = first - recall_rows[0]
        rows, sources = [], []
        for i, is_recall in enumerate(flags):
            if is_recall:
                assert self.mixture.recall is not None
                rows.append(self._recall_row(self.mixture.recall, step, i))
                sources.append(-1)
            else:
                assert self.text is not None
                rows.append(self.text[text_index])
                sources.append(self.text.locate(text_index)[0])
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
            sources=torch.tensor(sources, dtype=torch.int64),
            source_names=tuple(self.text.names) if self.text else (),
        )

    def row_of(self, step: int) -> int:
        """The index, in the run's order of rows, of the first row of a step's batch."""
        return self.first_row + (step - self.first_step) * self.batch_sequences

    def read_before(self, step: int) -> dict[str, int]:
        """Rows of each text source that were read before a step."""
        row = self.row_of(step)
        return self.text.read_before(row - self._recall_rows(row)) if self.text else {}

    def epochs_before(self, step: int) -> dict[str, float]:
        """How often each text source was read before a step; earlier orders of the run count."""
        rows = self.read_before(step)
        return (
            {name: rows[name] / windows for name, windows in zip(rows, self.text.windows, strict=True)}
            if self.text
            else {}
        )

    def describe(self, steps: int) -> list[SourceUse]:
        """The average use of every text source and of recall in `steps` steps."""
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
        """The number of recall rows among the run's first `rows` rows."""
        return int(rows * self.recall_share)

    def _recall_row(self, recall: RecallMixtureConfig, step: int, row: int) -> Row:
        """A row filled with recall sequences of one task, length and number of pairs; each is a document.

        The remainder of the row is a document of noise without labels.
        """
        generator = seeded_generator("training", "recall", self.seed, step, row)
        task = recall.tasks[generator.integers(len(recall.tasks))]
        length = recall.lengths[generator.integers(len(recall.lengths))]
        pairs = recall.pairs[generator.integers(len(recall.pairs))]
        sequences, rest = divmod(self.sequence_length, length)
        recall_batch = generate(
            task, sequences=sequences, length=length, pairs=pairs, generator=generator, vocabulary=self.vocabulary
        )
        noise = self.vocabulary.draw(self.vocabulary.seen_noise, (rest,), generator)
        return Row(
            tokens=np.append(recall_batch.tokens, noise),
            labels=np.append(recall_batch.labels, np.zeros(rest, dtype=np.int64)),
            loss_mask=np.append(
                recall_batch.loss_mask * np.float32(recall.loss_weight), np.zeros(rest, dtype=np.float32)
            ),
            borders=np.arange(0, self.sequence_length, length),
        )
