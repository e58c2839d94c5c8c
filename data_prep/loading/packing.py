"""Best-fit packing of whole documents into rows (arXiv 2404.10830), which cuts only documents longer than a row."""

import numpy as np

from .dataset import TokenStream


class PackedRows:
    """The documents of a stream as rows of `length` tokens, each document whole in one row if it fits.

    A longer document fills full rows, and its remainder is packed like a document of its own. Pieces are placed longest first,
    each in the fullest row with room for it, so the packing depends on the lengths alone.
    """

    def __init__(self, stream: TokenStream, length: int) -> None:
        self.stream, self.length = stream, length
        offsets = stream.document_offsets
        sizes = np.diff(offsets)
        full, rest = np.divmod(sizes, length)
        # Full rows first, in the order of the text.
        owner = np.repeat(np.arange(len(sizes)), full)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(full) - full, full)
        short = np.flatnonzero(rest)
        short = short[np.argsort(-rest[short], kind="stable")]
        starts = np.concatenate((offsets[:-1][owner] + within * length, offsets[1:][short] - rest[short]))
        rows = np.concatenate((np.arange(len(owner)), len(owner) + best_fit(rest[short], length)))
        order = np.argsort(rows, kind="stable")
        self._starts = starts[order]
        self._sizes = np.concatenate((np.full(len(owner), length), rest[short]))[order]
        self._first = np.concatenate(([0], np.cumsum(np.bincount(rows))))

    def __len__(self) -> int:
        return len(self._first) - 1

    def pieces(self, row: int) -> list[tuple[int, int]]:
        """The pieces of a row as positions in the stream: start and end, end excluded."""
        part = slice(self._first[row], self._first[row + 1])
        return [(int(a), int(a + n)) for a, n in zip(self._starts[part], self._sizes[part], strict=True)]


def best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """Assign each size to a row, from 0: the fullest with room for it, or a new one.

    Args:
        sizes: int `[n]`, from 1 to `length`, longest first.

    Returns:
        int64 `[n]`.
    """
    rows = np.empty(len(sizes), dtype=np.int64)
    open_rows: dict[int, list[int]] = {}  # by remaining room
    rooms = 0  # bit i is set if a row has room for i
    count = 0
    for i, size in enumerate(sizes.tolist()):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row = length, count
            count += 1
        rows[i] = row
        room -= size
        if room:
            open_rows.setdefault(room, []).append(row)
            rooms |= 1 << room
    return rows
