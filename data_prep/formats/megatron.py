"""Reader and writer of Megatron-LM's indexed datasets: token ids in `.bin`, sizes of sequences and borders of documents in
`.idx`."""

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .records import Context, Fault, Piece, RawDocument, UnreadableError

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
# Codes of the element types in the header of `.idx`.
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


class Index(NamedTuple):
    """The contents of an `.idx` file: the tokens' dtype, and `starts` int64 `[documents + 1]`, in tokens."""

    dtype: np.dtype
    starts: np.ndarray


def read_index(binary: str) -> Index:
    """Read the `.idx` beside a `.bin`.

    Raises:
        UnreadableError: there is none, or it does not fit the `.bin`.
    """
    path = Path(binary).with_suffix(".idx")
    if not path.is_file():
        raise UnreadableError(f"{path.name} is missing beside it: copy both files of the dataset")
    data = path.read_bytes()
    if data[:9] != MAGIC or int.from_bytes(data[9:17], "little") != VERSION or data[17:18] == b"":
        raise UnreadableError(f"{path.name} is not an index of Megatron-LM (version 1): name the .bin of one")
    code = data[17]
    sequences, documents = (int.from_bytes(data[i : i + 8], "little") for i in (18, 26))
    if code not in DTYPES or len(data) != 34 + 12 * sequences + 8 * documents:
        raise UnreadableError(f"{path.name} is cut off or damaged: fetch it again")
    sizes = np.frombuffer(data, "<i4", sequences, 34).astype(np.int64)
    borders = np.frombuffer(data, "<i8", documents, 34 + 12 * sequences)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    if not documents or borders.min() < 0 or borders.max() > sequences or (np.diff(borders) < 0).any():
        raise UnreadableError(f"{path.name} is damaged: fetch it again")
    index = Index(np.dtype(DTYPES[code]), ends[borders])
    if os.path.getsize(binary) != ends[-1] * index.dtype.itemsize:
        raise UnreadableError(f"it does not fit {path.name}: {ends[-1]} tokens were expected: fetch both again")
    return index


def write_index(path: Path, dtype: np.dtype, lengths: np.ndarray) -> None:
    """Write an `.idx` for documents of one sequence each.

    Args:
        path: of the `.idx`; not written aside.
        dtype: of the tokens.
        lengths: int64 `[documents]`, tokens of each.
    """
    code = next(code for code, name in DTYPES.items() if np.dtype(name) == dtype)
    pointers = (np.cumsum(lengths) - lengths) * dtype.itemsize
    with open(path, "wb") as file:
        file.write(MAGIC + VERSION.to_bytes(8, "little") + bytes([code]))
        file.write(len(lengths).to_bytes(8, "little") + (len(lengths) + 1).to_bytes(8, "little"))
        file.write(lengths.astype("<i4").tobytes() + pointers.astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


def megatron_pieces(path: str, unit_bytes: int) -> list[tuple[Piece, int]]:
    """Cut a `.bin` into pieces of about `unit_bytes`, given as ranges of documents.

    Raises:
        UnreadableError: as `read_index`.
    """
    dtype, starts = read_index(path)
    tokens = max(1, unit_bytes // dtype.itemsize)
    borders = np.unique(np.searchsorted(starts, [*range(0, int(starts[-1]), tokens), int(starts[-1])]))
    return [
        (
            Piece(path=path, start=int(a), stop=int(b), first_line=int(a) + 1),
            int(starts[b] - starts[a]) * dtype.itemsize,
        )
        for a, b in pairwise(borders)
    ]


def read_megatron(piece: Piece, context: Context) -> Iterator[RawDocument | Fault]:
    """The documents of a piece, decoded by the source's tokenizer; a separator at the end of a document is left out.

    Raises:
        UnreadableError: as `read_index`.
    """
    dtype, starts = read_index(piece.path)
    tokenizer, size, special = _tokenizer(str(context.config.tokenizer))
    tokens = np.memmap(piece.path, dtype, "r")
    for number in range(piece.start, piece.stop):
        ids = tokens[starts[number] : starts[number + 1]].tolist()
        if ids and ids[-1] in special:
            ids.pop()
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            yield context.fault(
                number + 1, f"token {wrong} is beyond the tokenizer's {size}: name the data's tokenizer"
            )
            continue
        yield context.document(tokenizer.decode(ids, skip_special_tokens=False), {}, number + 1)


@lru_cache(maxsize=1)
def _tokenizer(path: str):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    return tokenizer, max(tokenizer.get_vocab().values()) + 1, special
