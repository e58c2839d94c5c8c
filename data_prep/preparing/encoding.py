"""Encoding of documents as plain text: text that spells a special token never yields that token's id."""

import json
import re
from collections import Counter
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from .tokenizer import SPECIAL_TOKENS, end_of_text, vocabulary_size


class DocumentEncoder:
    """Encodes documents to token ids and their separator.

    Ids with a meaning are the separator, padding, the tokens of recall tasks, and every special token of the tokenizer but
    the one for unknown text. A tokenizer whose model holds such a token, or one that is not marked as special, would produce
    it from text that spells it.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self.separator = end_of_text(tokenizer)
        self.unknown = unknown_id(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        own = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        self._spelling = {
            token: added[token].content if token in added else str(tokenizer.id_to_token(token))
            for token in own | {token for token, entry in added.items() if entry.special}
            if token is not None and token != self.unknown
        }
        self._has_meaning = np.zeros(vocabulary_size(tokenizer), dtype=bool)
        self._has_meaning[list(self._spelling)] = True

    def encode(self, text: str) -> np.ndarray | None:
        """The ids of a document and its separator, `[tokens + 1]`.

        Returns:
            None if the tokenizer cannot encode a special token that the text spells as plain text.
        """
        ids = self._ids(text)
        ids.append(self.separator)
        tokens = np.array(ids, dtype=self.dtype)
        if not self._has_meaning[tokens[:-1]].any():
            return tokens
        plain = self._plain_ids(text, ids[:-1])
        return None if plain is None else np.array([*plain, self.separator], dtype=self.dtype)

    def _ids(self, text: str) -> list[int]:
        # The fast call omits offsets, which are not needed. One document per call: more are no faster on one core.
        (encoded,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return encoded.ids  # a new list

    def _plain_ids(self, text: str, ids: list[int]) -> list[int] | None:
        """The ids of the text cut inside every special token; None if that does not help, or changes the text."""
        found = {token for token in ids if self._has_meaning[token]}
        spellings = "|".join(re.escape(self._spelling[token]) for token in sorted(found))
        cuts = [0, *(match.start() + 1 for match in re.finditer(spellings, text)), len(text)]
        plain = [token for a, b in pairwise(cuts) for token in self._ids(text[a:b])]
        if self._has_meaning[plain].any() or self.decode(plain) != self.decode(ids):
            return None
        return plain

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def lost_characters(self, text: str, ids: np.ndarray) -> int:
        """Characters of a document that are not in the text decoded from its ids (separator included), at least."""
        return (Counter(text) - Counter(self.decode(ids[:-1].tolist()))).total()


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id for text that the tokenizer has no token for; None if there is no such id."""
    if hasattr(tokenizer.model, "unk_token"):
        name = tokenizer.model.unk_token
        return tokenizer.token_to_id(name) if name is not None else None
    return json.loads(tokenizer.to_str())["model"].get("unk_id")  # for Unigram models the id is found nowhere else
