"""Random generators with private streams, seeded by their purpose."""

import hashlib
import json

import numpy as np


def seeded_generator(*parts: str | int | float | None) -> np.random.Generator:
    """A generator whose stream depends on `parts` alone, through their SHA-256.

    The first part names the purpose, `"training"` or `"evaluation"`, so that sequences of the two never come from the
    same stream whatever seeds a user picks: `seeded_generator("evaluation", "niah", 4096, 8, seed)`.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
