"""The 128 token ids that the recall tasks are written in."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RecallVocabulary:
    """Keys, values, noise and markers: four disjoint, contiguous ranges of ids that start at `first_id`.

    `first_id=0` is a vocabulary of its own (V = 128); the id of `<|r0|>` puts the tasks inside a text vocabulary.
    Noise shares no id with keys and values: otherwise a key recurs by accident, the question has two answers, and the
    best possible accuracy falls with the length of the gap.

    `num_new_noise` further ids of noise lie behind the markers, for evaluations that nothing was chosen by.
    """

    first_id: int = 0
    num_keys: int = 40
    num_values: int = 32
    num_noise: int = 48
    num_new_noise: int = 0

    NUM_MARKERS = 8
    # The last third of the noise never occurs in training: a haystack of it shows recall among unknown tokens.
    UNSEEN_NOISE_SHARE = 3

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.num_keys + self.num_values + self.num_noise + self.NUM_MARKERS + self.num_new_noise

    @property
    def keys(self) -> range:
        return range(self.first_id, self.first_id + self.num_keys)

    @property
    def values(self) -> range:
        return range(self.keys.stop, self.keys.stop + self.num_values)

    @property
    def noise(self) -> range:
        return range(self.values.stop, self.values.stop + self.num_noise)

    @property
    def seen_noise(self) -> range:
        """The noise ids of training, and of evaluation by default."""
        return self.noise[: self.num_noise - self.num_noise // self.UNSEEN_NOISE_SHARE]

    @property
    def unseen_noise(self) -> range:
        """The noise ids that only evaluations use."""
        return self.noise[len(self.seen_noise) :]

    @property
    def new_noise(self) -> range:
        """The noise ids that neither training nor the evaluations for model selection use; empty by default."""
        first = self.noise.stop + self.NUM_MARKERS
        return range(first, first + self.num_new_noise)

    @property
    def system(self) -> int:
        """Marker that opens a system prompt."""
        return self.noise.stop

    @property
    def end(self) -> int:
        """Marker that closes a system prompt."""
        return self.noise.stop + 1

    @property
    def query(self) -> int:
        """Marker before a key whose value is queried."""
        return self.noise.stop + 2

    @property
    def call(self) -> int:
        """Marker before the key of a tool call."""
        return self.noise.stop + 3

    @property
    def result(self) -> int:
        """Marker before the value that a tool call gave."""
        return self.noise.stop + 4

    @property
    def mine(self) -> int:
        """Marker of an agent that gets something new."""
        return self.noise.stop + 5

    @property
    def trade(self) -> int:
        """Marker of an agent that gives something to another."""
        return self.noise.stop + 6

    @property
    def build(self) -> int:
        """Marker of an agent that uses something up."""
        return self.noise.stop + 7

    def draw(self, ids: range, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        """Ids drawn uniformly and independently from one of the ranges, int64 of `shape`."""
        return generator.integers(ids.start, ids.stop, size=shape)

    def draw_distinct_keys(self, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
        """Keys `[N, n]`, distinct within each row, in random order."""
        return self.draw_distinct(self.keys, shape, generator)

    def draw_distinct(self, ids: range, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
        """Ids `[N, n]` from one of the ranges, distinct within each row, in random order."""
        order = generator.random((shape[0], len(ids)), dtype=np.float32).argsort(axis=1)
        return order[:, : shape[1]] + ids.start
