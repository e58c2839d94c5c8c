"""The batch order: `batch(step)` is a pure function of the dataset, the mixture, the seed and the step."""

from dataclasses import dataclass

import numpy as np
import torch

from ..models.errors import UserError
from .batch import Batch
from .config import MixtureConfig, RecallMixtureConfig
from .dataset import Dataset
from .recall import RecallVocabulary, generate, seeded_generator
from .text_rows import Row, TextRows
from .tokenizer import reserved_start


@dataclass(frozen=True)
class SourceUse:
    """What a run takes from a source: `epochs` is how often it sees the source's text; None where nothing repeats."""

    name: str
    share: float
    tokens: int
    epochs: float | None


class BatchLoader:
    """Batches of `batch_sequences` rows of `sequence_length` tokens, mixed of text and recall inside each batch.

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
        self.recall_rows = round(recall.share * batch_sequences) if recall else 0
        self.text_rows = batch_sequences - self.recall_rows
        if recall and (self.recall_rows == 0 or (self.text_rows == 0) != (recall.share == 1)):
            raise UserError(
                f"recall.share {recall.share} of {batch_sequences} rows is {self.recall_rows} rows: use more rows"
            )
        # Row i is recall where this grows: any run of rows, hence any rank, holds its share to within one row.
        grown = np.arange(batch_sequences + 1) * self.recall_rows // batch_sequences
        self.is_recall = np.diff(grown).astype(bool)

        if dataset is None and self.text_rows:
            raise UserError("a mixture with text needs a dataset: name one, or set recall.share to 1")
        self.vocabulary = RecallVocabulary(reserved_start(dataset.tokenizer()) if dataset and recall else 0)
        self.text: TextRows | None = None
        if dataset and self.text_rows:
            self.text = TextRows(dataset, mixture, sequence_length=sequence_length, seed=seed)

    def batch(self, step: int) -> Batch:
        """The whole batch of a step, from 0; `.rows(rank, world_size)` is what one rank takes."""
        text_index = step * self.text_rows
        rows = []
        for i, is_recall in enumerate(self.is_recall):
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
            is_recall=torch.from_numpy(self.is_recall.copy()),
        )

    def describe(self, steps: int) -> list[SourceUse]:
        """What `steps` steps take from every source of text and from the recall generators."""
        uses = []
        if self.text:
            total = sum(self.text.quotas)
            for name, quota, windows in zip(self.text.names, self.text.quotas, self.text.windows, strict=True):
                rows = steps * self.text_rows * quota / total
                share = self.text_rows / self.batch_sequences * quota / total
                uses.append(SourceUse(name, share, round(rows * self.sequence_length), rows / windows))
        if self.recall_rows:
            tokens = steps * self.recall_rows * self.sequence_length
            uses.append(SourceUse("recall", self.recall_rows / self.batch_sequences, tokens, None))
        return uses

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
