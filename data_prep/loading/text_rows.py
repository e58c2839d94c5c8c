"""The text rows of a run: source, position and contents of the n-th row as pure functions of n."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...models.common.errors import UserError
from ..config import MixtureConfig
from .dataset import Dataset, TokenStream
from .packing import PackedRows
from .permutation import Permutation

# Rows are assigned to sources in cycles of this length, so shares are exact to a thousandth.
CYCLE = 1024


@dataclass(frozen=True)
class Row:
    """One row: int64 `tokens [T]`, `labels [T]`, float32 `loss_mask [T]`; `borders`, 0 and the starts of documents inside."""

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    borders: np.ndarray


class TextRows:
    """The text rows of a run, each a pure function of its number.

    Every source is cut into windows of `sequence_length` tokens (and the one after, as the last label), or packed into rows
    of whole documents, as `mixture.documents` says. An epoch of a source has each of its rows once, in an order that
    the seed and the epoch determine.

    Args:
        starts: rows of each source, by name, that were read before the first row; none by default.
    """

    def __init__(
        self,
        dataset: Dataset,
        mixture: MixtureConfig,
        *,
        sequence_length: int,
        seed: int,
        starts: Mapping[str, int] | None = None,
    ) -> None:
        weights = mixture.text_weights
        names = [source.name for source in dataset.manifest.sources]
        for name in weights:
            if name not in names:
                raise UserError(f"text_weights: {dataset.folder} has no source {name!r}: it has {', '.join(names)}")
        self.length, self.seed = sequence_length, seed
        self.names = [name for name in names if name in weights] if weights else names
        self.streams = [dataset.split("train", name) for name in self.names]
        whole = mixture.documents == "whole"
        self.packed = [PackedRows(stream, sequence_length) if whole else None for stream in self.streams]
        self.windows = [
            len(packed) if packed else (stream.num_tokens - 1) // sequence_length
            for stream, packed in zip(self.streams, self.packed, strict=True)
        ]
        for name, stream, windows in zip(self.names, self.streams, self.windows, strict=True):
            if windows < 1:
                raise UserError(
                    f"source {name} of {dataset.folder} has {stream.num_tokens} tokens, fewer than one row of "
                    f"{sequence_length}: shorten the sequence or add text"
                )
        self.quotas = _quotas([weights.get(name, 0.0) for name in self.names] if weights else self.windows)
        # Source of each position of a cycle, in random order, and how many rows of that source precede it; the same in all cycles.
        slots = Permutation(CYCLE, "training", "sources", seed)(np.arange(CYCLE))
        self._sources = np.repeat(np.arange(len(self.names)), self.quotas)[slots]
        same = self._sources[:, None] == np.arange(len(self.names))
        self._starts = [(starts or {}).get(name, 0) for name in self.names]
        self._earlier = np.take_along_axis(same.cumsum(axis=0), self._sources[:, None], axis=1)[:, 0] - 1

    def __getitem__(self, index: int) -> Row:
        """The `index`-th text row of the run."""
        source, number = self.locate(index)
        epoch, within = divmod(number, self.windows[source])
        order = Permutation(self.windows[source], "training", "windows", self.names[source], epoch, self.seed)
        row, packed = int(order(within)), self.packed[source]
        if packed:
            return read_pieces(self.streams[source], packed.pieces(row), self.length)
        return read_window(self.streams[source], row * self.length, self.length)

    def locate(self, index: int) -> tuple[int, int]:
        """Source of the `index`-th text row, and the number of earlier rows of that source."""
        cycle, position = divmod(index, CYCLE)
        source = int(self._sources[position])
        return source, self._starts[source] + cycle * self.quotas[source] + int(self._earlier[position])

    def read_before(self, index: int) -> dict[str, int]:
        """Rows of each source that were read before the `index`-th text row, those before the first row included."""
        cycle, position = divmod(index, CYCLE)
        partial = np.bincount(self._sources[:position], minlength=len(self.names))
        return {
            name: start + cycle * quota + int(rest)
            for name, start, quota, rest in zip(self.names, self._starts, self.quotas, partial, strict=True)
        }


def _quotas(weights: list[float] | list[int]) -> list[int]:
    """Rows of each source in a cycle, proportional to the weights, at least one each, `CYCLE` in all."""
    exact = np.array(weights, dtype=np.float64) / np.sum(weights) * CYCLE
    quotas = np.maximum(np.floor(exact), 1).astype(int)
    # Largest remainders first; a minimum of one can also make the sum too large.
    while (missing := CYCLE - quotas.sum()) != 0:
        gap = np.where((quotas > 1) | (missing > 0), exact - quotas, np.inf)
        quotas[gap.argmax() if missing > 0 else gap.argmin()] += np.sign(missing)
    return quotas.tolist()


def read_window(stream: TokenStream, start: int, length: int) -> Row:
    """The row of `length` tokens from `start`.

    A document's separator is predicted; the token after it, the start of an unrelated document, is not.
    """
    window = stream.read(start, start + length + 1)
    begins = stream.document_starts(start + 1, start + length + 1) - start
    loss_mask = np.ones(length, dtype=np.float32)
    loss_mask[begins - 1] = 0
    return Row(window[:-1], window[1:], loss_mask, np.append(0, begins[begins < length]))


def read_pieces(stream: TokenStream, pieces: list[tuple[int, int]], length: int) -> Row:
    """The row of `length` tokens made of `pieces` of documents, each a start and end in the stream.

    The remainder is a document of repeated separators without labels.
    """
    tokens, labels = np.zeros((2, length), dtype=np.int64)
    loss_mask = np.zeros(length, dtype=np.float32)
    borders, end = [], 0
    for start, stop in pieces:
        borders.append(end)
        part = slice(end, end + stop - start)
        tokens[part] = stream.read(start, stop)
        # The last token of a piece has a label if its document continues in another piece; a separator has none.
        counted = stop - start - (0 if stream.continues(stop) else 1)
        labels[end : end + counted] = stream.read(start + 1, start + 1 + counted)
        loss_mask[end : end + counted] = 1
        end = part.stop
    if end < length:
        borders.append(end)
        tokens[end:] = stream.read(stream.num_tokens - 1, stream.num_tokens)
    return Row(tokens, labels, loss_mask, np.array(borders, dtype=np.int64))
