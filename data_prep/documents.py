"""A document as the pipeline sees it: normalised text, and a hash that decides its fate."""

import hashlib
import unicodedata

_RANGE = 2**64


def normalise(text: str) -> str:
    """Unicode NFC, without NUL characters. Nothing else: what is decoded is what was read."""
    return unicodedata.normalize("NFC", text.replace("\0", ""))


def document_draw(text: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on the text, the seed and the purpose alone.

    A split made with it is the same after sources were added or reordered, and copies of a document stay together.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest, "little") / _RANGE


def is_heldout(text: str, seed: int, fraction: float) -> bool:
    """Whether the document belongs to the held-out split."""
    return document_draw(text, seed, "heldout") < fraction
