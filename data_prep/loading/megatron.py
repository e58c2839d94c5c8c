"""Export of a dataset's splits as indexed datasets of Megatron-LM."""

import shutil
from pathlib import Path

import numpy as np

from ...models.common.errors import UserError
from ...models.common.files import write_aside
from ..formats.megatron import DTYPES, write_index
from ..preparing.manifest import Split
from ..preparing.tokenizer import FILE_NAME as TOKENIZER_FILE
from .dataset import Dataset

CHUNK = 2**22  # tokens copied together


def export_megatron(dataset: Dataset, split: Split, prefix: Path) -> int:
    """Write `PREFIX.bin` and `PREFIX.idx`, for `--data-path PREFIX`, and the tokenizer beside them; returns the tokens.

    Every document keeps its separator as its last token, as with Megatron-LM's `--append-eod`.

    Raises:
        UserError: the split is empty, a file is there already, or the place cannot be written.
    """
    stream = dataset.split(split)
    if not stream.num_documents:
        raise UserError(f"{dataset.folder} has no document in split {split}")
    binary, index = prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")
    tokenizer = prefix.with_name(f"{prefix.name}.{TOKENIZER_FILE}")
    for path in (binary, index, tokenizer):
        if path.exists():
            raise UserError(f"{path} is there already: name another prefix, or delete it")
    # Megatron-LM knows uint16 and int32.
    dtype = dataset.manifest.token_dtype if dataset.manifest.dtype == "uint16" else np.dtype(DTYPES[4])
    with write_aside(binary) as aside, open(aside, "wb") as file:
        for start in range(0, stream.num_tokens, CHUNK):
            stream.read(start, min(start + CHUNK, stream.num_tokens)).astype(dtype).tofile(file)
    with write_aside(tokenizer) as aside:
        shutil.copyfile(dataset.folder / TOKENIZER_FILE, aside)
    with write_aside(index) as aside:  # written last: without the index the other files are not used
        write_index(aside, dtype, np.diff(stream.document_offsets))
    return stream.num_tokens
