"""A document as the pipeline sees it: normalised text, and a hash that decides its fate."""

import hashlib
import unicodedata

from ..config import Normalisation

_RANGE = 2**64


def normalise(text: str, form: Normalisation = "nfc") -> str:
    """Unicode NFC (or NFKC, or nothing). Nothing else: what is decoded is what was read."""
    if form == "none" or unicodedata.is_normalized(form.upper(), text):
        return text
    return unicodedata.normalize(form.upper(), text)


def document_hash(data: bytes) -> int:
    """64 bits of a document's normalised UTF-8; the same text is the same document."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def draw(document: int, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on the document's hash, the seed and the purpose alone.

    A split made with it is the same after sources were added or reordered, and copies of a document stay together.
    """
    key = f"{seed}/{purpose}".encode()
    digest = hashlib.blake2b(document.to_bytes(8, "little"), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") / _RANGE


def is_heldout(document: int, seed: int, fraction: float) -> bool:
    """Whether the document with this hash belongs to the held-out split."""
    return draw(document, seed, "heldout") < fraction
