"""Normalisation and hashing of documents; the hash decides splits and samples."""

import hashlib
import unicodedata
from typing import Literal

from ..config import Normalisation

_RANGE = 2**64
_FORMS: dict[Normalisation, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}  # Unicode's names


def normalise(text: str, form: Normalisation = "nfc") -> str:
    """Normalise text to Unicode NFC, NFKC, or not at all; no other change is made."""
    if form == "none" or unicodedata.is_normalized(_FORMS[form], text):
        return text
    return unicodedata.normalize(_FORMS[form], text)


def document_hash(data: bytes) -> int:
    """64-bit hash of a document's normalised UTF-8; equal texts are the same document."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def draw(document: int, seed: int, purpose: str) -> float:
    """A uniform number in [0, 1) that depends only on the document's hash, the seed and the purpose.

    A split by it does not change when sources are added or reordered, and copies of a document stay together.
    """
    key = f"{seed}/{purpose}".encode()
    digest = hashlib.blake2b(document.to_bytes(8, "little"), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") / _RANGE


def is_heldout(document: int, seed: int, fraction: float) -> bool:
    """Whether the document with this hash belongs to the held-out split."""
    return draw(document, seed, "heldout") < fraction
