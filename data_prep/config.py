"""What a dataset and a training batch are made of. Every field here defines the result; nothing says how to run it."""

import difflib
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .recall import TASKS, RecallVocabulary, minimum_length
from .tokenizer import SMALLEST_VOCABULARY

SourceKind = Literal["wikipedia-vital", "python-stdlib", "text", "jsonl"]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(_Config):
    """Where documents come from.

    Attributes:
        kind: "text" (a file is a document) or "jsonl" (a line is one) for local files; "wikipedia-vital" and
            "python-stdlib" know where theirs are.
        name: what shards, manifest and mixture call it; the kind if None.
        paths: files, folders or glob patterns (`**` is recursive), for the local kinds only.
        text_column: the key that holds the text in a jsonl line.
        fallback: the kind to use when this one cannot be fetched, e.g. without network.
        limit_documents: use only the first so many documents.
    """

    kind: SourceKind
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    paths: tuple[str, ...] = ()
    text_column: str = "text"
    fallback: Literal["python-stdlib"] | None = None
    limit_documents: int | None = Field(default=None, ge=1)

    @property
    def label(self) -> str:
        """The source's name in shards, manifest and mixture."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _paths_where_they_are_needed(self) -> Self:
        local = self.kind in ("text", "jsonl")
        if local and not self.paths:
            raise ValueError(f"source {self.label}: kind {self.kind!r} needs paths")
        if not local and self.paths:
            raise ValueError(f"source {self.label}: kind {self.kind!r} takes no paths; use kind 'text' or 'jsonl'")
        return self


class TokenizerConfig(_Config):
    """A byte-level BPE, trained on the dataset's own training documents.

    Attributes:
        vocab_size: all ids together: 256 bytes, 130 special tokens, merges.
        train_bytes: about how much text it is trained on, a sample by document hash if there is more.
    """

    vocab_size: int = Field(default=4096, ge=SMALLEST_VOCABULARY)
    train_bytes: int = Field(default=10_000_000, ge=1)


class DatasetConfig(_Config):
    """A dataset: `data/<name>/`.

    Attributes:
        heldout_fraction: share of the documents that training never sees, chosen by document hash.
        unit_bytes: input bytes of one unit of work, which is what an interruption loses and a worker takes.
        shard_tokens: a unit that has more tokens than this writes several shards.
        seed: chooses which documents are held out, and which train the tokenizer.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    tokenizer: TokenizerConfig = TokenizerConfig()
    heldout_fraction: float = Field(default=0.02, ge=0, lt=1)
    unit_bytes: int = Field(default=2_000_000, ge=1)
    shard_tokens: int = Field(default=50_000_000, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        labels = [source.label for source in self.sources]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two sources are called {label!r}: give one of them another name")
        return self


class RecallMixtureConfig(_Config):
    """The recall part of a batch. Every row draws one task, one length and one number of pairs, all equally likely.

    Attributes:
        share: share of a batch's rows; 1 trains on recall alone.
        tasks: names of recall tasks.
        lengths: tokens of a recall sequence.
        pairs: key-value pairs in a sequence; all of them are asked.
        loss_weight: of a recall label against a text label, which a row holds many more of.
    """

    share: float = Field(default=0.5, gt=0, le=1)
    tasks: tuple[str, ...] = Field(default=("sysprompt", "tooltrace"), min_length=1)
    lengths: tuple[int, ...] = Field(default=(64,), min_length=1)
    pairs: tuple[int, ...] = Field(default=(1, 2, 3, 4, 6, 8), min_length=1)
    loss_weight: float = Field(default=1.0, gt=0)

    @field_validator("tasks")
    @classmethod
    def _tasks_exist(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task not in TASKS:
                near = difflib.get_close_matches(task, TASKS, n=1, cutoff=0)[0]
                raise ValueError(f"no recall task is called {task!r}: did you mean {near!r}?")
        return tasks

    @model_validator(mode="after")
    def _cells_fit(self) -> Self:
        keys = RecallVocabulary().num_keys
        for pairs in self.pairs:
            if not 1 <= pairs <= keys:
                raise ValueError(f"recall: {pairs} pairs in a sequence: from 1 to {keys} are possible")
        for task in self.tasks:
            if (needed := TASKS[task].num_keys(max(self.pairs))) > keys:
                raise ValueError(f"recall: {max(self.pairs)} pairs of {task} need {needed} distinct keys, not {keys}")
            shortest = minimum_length(task, pairs=max(self.pairs))
            if min(self.lengths) < shortest:
                raise ValueError(
                    f"recall: {max(self.pairs)} pairs of {task} need a length of {shortest}, not {min(self.lengths)}"
                )
        return self


class MixtureConfig(_Config):
    """What the rows of a training batch are.

    Attributes:
        recall: the recall part; None trains on text alone.
        text_weights: share of the text rows by source name; empty takes every source in proportion to its tokens.
    """

    recall: RecallMixtureConfig | None = RecallMixtureConfig()
    text_weights: dict[str, float] = {}

    @field_validator("text_weights")
    @classmethod
    def _weights_are_positive(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"text_weights: {name} has weight {weight}: it must be above 0 (or leave it out)")
        return weights
