"""Configuration of datasets and of the mixture of training batches. Every field affects the result; how it is computed (workers,
machines) is not configured here."""

import difflib
from typing import Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from ..models.common.config import Config
from .preparing.tokenizer import SMALLEST_VOCABULARY
from .recall import TASKS, RecallVocabulary, minimum_length

LocalKind = Literal["text", "jsonl", "csv", "parquet", "arrow", "save_to_disk", "megatron"]
PackageKind = Literal[
    "wikipedia-vital",
    "brown",
    "jane-austen",
    "gcide",
    "foldoc",
    "treasury-of-david",
    "debian-descriptions",
    "linux-doc",
    "python-doc",
    "perl-doc",
    "postgresql-doc",
    "linux-source",
]
SourceKind = Literal[LocalKind, "huggingface", "python-stdlib", PackageKind]
Normalisation = Literal["nfc", "nfkc", "none"]
Template = Literal["paragraphs", "lines", "chatml", "dialogue"]

# Names that a folder source leaves out: hidden files and folders, and what tools and file managers leave behind.
TOOL_FILES = (".*", "*~", "__pycache__", "__MACOSX", "Thumbs.db", "desktop.ini", "_SUCCESS")


class SourceConfig(Config):
    """A source of documents, with its filters and limits."""

    added = ("include", "exclude", "template", "separator", "tokenizer")

    kind: SourceKind
    """Form or origin: for local files "text" (a document per file), "jsonl" (one per line, or per object of one JSON array), "csv",
    "parquet" or "arrow" (one per row), "save_to_disk" (a folder that `datasets` wrote), "megatron" (`.bin` and `.idx`); text, JSON
    and CSV plain or compressed; "huggingface" for a dataset of the hub; the other kinds have fixed origins."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the source in shards, manifest and mixture; the kind if null."""
    paths: tuple[str, ...] = ()
    """Files, folders or glob patterns (`**` is recursive); for the local kinds only."""
    include: tuple[str, ...] = ()
    """Patterns, as of a shell, of the names or relative paths of the files to take from `paths`; empty takes all."""
    exclude: tuple[str, ...] = TOOL_FILES
    """Patterns of the names or relative paths of files and folders to leave out. The default holds for what lies below a folder of
    `paths`, not for names that `paths` spells out."""
    dataset: str | None = None
    """Name on the hub, or a local folder of the same layout; for "huggingface" only."""
    subset: str | None = None
    """Subset of the hub's dataset; its default one if null."""
    split: str = "train"
    """Split of the hub's dataset, or of a "save_to_disk" folder with several."""
    revision: str | None = None
    """Commit or tag of the hub's dataset; null takes the newest, which is recorded."""
    text_column: str = "text"
    """The key or column that holds the text; `a.b` is the key `b` of the object under `a`."""
    template: Template | None = None
    """How a list becomes text: strings as "paragraphs" or "lines", chat messages as "chatml" or "dialogue"."""
    separator: str | None = Field(default=None, min_length=1)
    """Text between the documents of a text file; null takes the file as one document."""
    tokenizer: str | None = None
    """Of kind "megatron": the `tokenizer.json` that its ids are of."""
    fallback: Literal["python-stdlib"] | None = None
    """The kind to use when this one cannot be fetched, for example without network."""
    normalisation: Normalisation = "nfc"
    """Normalisation of Unicode: "nfc" changes no meaning, "nfkc" also folds ligatures and widths."""
    min_characters: int = Field(default=1, ge=1)
    """Shorter documents are filtered out."""
    max_characters: int | None = Field(default=None, ge=1)
    """Longer documents are filtered out; no limit if null."""
    keep: dict[str, tuple[str | int, ...]] = Field(default={})
    """Permitted values of columns, such as `{language: [en]}`, dotted as in `text_column`; other documents are filtered out."""
    at_least: dict[str, float] = Field(default={})
    """Smallest values of numeric columns, such as `{int_score: 4}`; documents below are filtered out."""
    limit_documents: int | None = Field(default=None, ge=1)
    """Use only so many of the first documents that pass the filters, duplicates included."""
    limit_tokens: int | None = Field(default=None, ge=1)
    """Stop after the document with which the source, both splits together, reaches this number of tokens."""

    @property
    def label(self) -> str:
        """The source's name in shards, manifest and mixture."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _place_fits_the_kind(self) -> Self:
        local = self.kind in get_args(LocalKind)
        if local and not self.paths:
            raise ValueError(f"source {self.label}: kind {self.kind!r} needs paths")
        if not local and self.paths:
            raise ValueError(f"source {self.label}: kind {self.kind!r} takes no paths; use kind 'text' or 'jsonl'")
        if (self.kind == "megatron") != (self.tokenizer is not None):
            raise ValueError(f"source {self.label}: kind 'megatron' needs tokenizer, and no other kind takes it")
        if self.separator is not None and self.kind != "text":
            raise ValueError(f"source {self.label}: only kind 'text' takes a separator")
        if (self.kind == "huggingface") != (self.dataset is not None):
            raise ValueError(f"source {self.label}: kind 'huggingface' needs dataset, and no other kind takes it")
        return self


class TokenizerConfig(Config):
    """The tokenizer: a byte-level BPE trained on the dataset's training documents, or an existing one."""

    vocab_size: int = Field(default=4096, ge=SMALLEST_VOCABULARY)
    """Size of a trained vocabulary, all ids together: 256 bytes, 130 special tokens, merges."""
    train_bytes: int = Field(default=10_000_000, ge=1)
    """Approximate size of the text that the tokenizer is trained on: a sample by document hash if there is more."""
    load: str | None = None
    """A `tokenizer.json`, the folder of one, or a name on the Hugging Face hub; null trains one. Missing special tokens are
    appended to its vocabulary."""
    special_tokens: tuple[str, ...] = ()
    """Additional special tokens, such as those of a chat format; the same strings in documents are encoded as plain text."""


class NearDuplicateConfig(Config):
    """Removal of near-duplicates of earlier documents, by MinHash over word n-grams ("runs")."""

    threshold: float = Field(default=0.8, ge=0.5, le=1)
    """Estimated Jaccard similarity of two documents' sets of runs from which they count as duplicates."""
    words: int = Field(default=5, ge=1)
    """Words of a run."""
    permutations: int = Field(default=256, ge=32, multiple_of=8)
    """Permutations of MinHash; the estimate's standard error is at most `0.5 / sqrt(permutations)`."""


class OverlapConfig(Config):
    """The check for word n-grams ("runs") shared by training documents and the held-out split or evaluation sets."""

    words: int = Field(default=13, ge=2)
    """Words of a run; 13 as in GPT-3 (Brown et al. 2020, appendix C)."""
    evaluation: tuple[SourceConfig, ...] = ()
    """Sources that training must not overlap; read like any source, but never trained on."""
    action: Literal["report", "drop"] = "report"
    """Overlapping training documents are counted ("report"), or also excluded ("drop")."""


class DatasetConfig(Config):
    """The configuration of a dataset, prepared in `data/<name>/`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the dataset, and of its folder below the folder of datasets."""
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Where the documents come from."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer of the dataset."""
    heldout_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the documents in the held-out split, chosen by document hash."""
    exact_duplicates: Literal["drop", "keep"] = "drop"
    """Of documents that are equal after normalisation, keep only the first ("drop") or all ("keep")."""
    near_duplicates: NearDuplicateConfig | None = None
    """Removal of near-duplicates; null keeps them."""
    overlap: OverlapConfig | None = OverlapConfig()
    """The check for text shared with held-out or evaluation documents; null skips it."""
    max_bad_share: float = Field(default=0.001, ge=0, le=1)
    """Share of a source's documents, or of the bytes in files lost whole, that may be unreadable before the preparation fails."""
    max_document_bytes: int = Field(default=10_000_000, ge=1)
    """Longer documents count as unreadable, since the tokenizer's memory grows with their length."""
    unit_bytes: int = Field(default=2_000_000, ge=1)
    """Input bytes of one unit of work, which a worker processes and an interruption loses."""
    shard_tokens: int = Field(default=50_000_000, ge=1)
    """A unit with more tokens writes several shards."""
    seed: int = 0
    """Seed of the choice of held-out documents and of the tokenizer's training text."""

    @property
    def evaluation_sources(self) -> tuple[SourceConfig, ...]:
        """Sources for the overlap check only, never trained on."""
        return self.overlap.evaluation if self.overlap else ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        labels = [source.label for source in (*self.sources, *self.evaluation_sources)]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two sources are called {label!r}: give one of them another name")
        return self


class RecallMixtureConfig(Config):
    """The recall rows of a batch; each draws a task, a length and a number of pairs, uniformly."""

    share: float = Field(default=0.5, gt=0, le=1)
    """Share of a batch's rows that are recall sequences; 1 trains on recall alone."""
    tasks: tuple[str, ...] = Field(default=("sysprompt", "tooltrace"), min_length=1)
    """Names of recall tasks, drawn from uniformly."""
    lengths: tuple[int, ...] = Field(default=(64,), min_length=1)
    """Lengths of a recall sequence in tokens, drawn from uniformly."""
    pairs: tuple[int, ...] = Field(default=(1, 2, 3, 4, 6, 8), min_length=1)
    """Numbers of key-value pairs in a sequence, drawn from uniformly; all pairs are queried."""
    loss_weight: float = Field(default=1.0, gt=0)
    """Weight of a recall label relative to a text label, of which a row has many more."""

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


class MixtureConfig(Config):
    """The mixture of rows in a training batch."""

    recall: RecallMixtureConfig | None = RecallMixtureConfig()
    """The recall rows of a batch; null trains on text alone."""
    text_weights: dict[str, float] = Field(default={})
    """Share of the text rows by source name; empty takes every source in proportion to its tokens."""
    documents: Literal["cut", "whole"] = "cut"
    """How documents fill rows: "cut" treats text as one stream, whose rows may begin and end inside documents; "whole" packs
    documents into rows and cuts only those longer than a row."""

    @field_validator("text_weights")
    @classmethod
    def _weights_are_positive(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"text_weights: {name} has weight {weight}: it must be above 0 (or leave it out)")
        return weights
