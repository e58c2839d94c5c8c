"""Near-duplicate detection by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets,
section 3.4), with `datasketch`."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from ...models.common.errors import UserError
from ..config import NearDuplicateConfig
from .ngrams import word_runs

ROWS = 8  # of a band: with 256 permutations, 32 bands find a pair of similarity 0.8 with probability 0.997
SEED, SCHEME = 1, "affine32"


def _datasketch():
    try:
        import datasketch
    except ImportError as error:
        raise UserError('near_duplicates needs the package datasketch: pip install "echo-lm[hub]"') from error
    return datasketch


def signatures(documents: Sequence[bytes], config: NearDuplicateConfig) -> np.ndarray:
    """MinHash of each document's set of word runs, uint32 `[documents, permutations]`.

    A document shorter than a run counts as a set with itself as the only element.
    """
    minhash = _datasketch().MinHash
    hashes = np.empty((len(documents), config.permutations), dtype=np.uint32)
    runs, owners = word_runs(documents, config.words)
    for i, document in enumerate(documents):
        values = np.unique(runs[owners == i])
        if not len(values):
            values = np.array([int.from_bytes(document[:8].ljust(8), "little") ^ len(document)], dtype=np.uint64)
        sketch = minhash(num_perm=config.permutations, seed=SEED, scheme=SCHEME, hashfunc=int)
        sketch.update_batch((values >> np.uint64(32)).tolist())
        hashes[i] = sketch.hashvalues
    return hashes


def near_duplicates(sketches: np.ndarray, config: NearDuplicateConfig) -> np.ndarray:
    """Mark the near-duplicates of earlier documents that are kept, bool `[documents]`.

    Args:
        sketches: uint32 `[documents, permutations]`, in the documents' order.
        config: of the signatures.
    """
    datasketch = _datasketch()
    index = datasketch.MinHashLSH(num_perm=config.permutations, params=(config.permutations // ROWS, ROWS))
    repeated = np.zeros(len(sketches), dtype=bool)
    for i, values in enumerate(sketches):
        sketch = datasketch.LeanMinHash(seed=SEED, hashvalues=values, scheme=SCHEME)
        candidates = cast(list[int], index.query(sketch))  # the keys that were inserted
        # The share of equal minima estimates the similarity; bands alone would also match pairs far below the threshold.
        repeated[i] = any((sketches[j] == values).mean() >= config.threshold for j in candidates)
        if not repeated[i]:
            index.insert(i, sketch, check_duplication=False)
    return repeated
