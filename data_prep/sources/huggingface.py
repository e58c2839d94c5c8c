"""Adapter for datasets of the Hugging Face hub, and for local folders of the same layout.

`datasets` says which files belong to a subset and split; they are then read like local ones (of the hub, only the parts that
are needed), each with its own columns, so that a damaged file costs no other. Formats that only `datasets` reads are streamed.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from ...models.common.errors import UserError
from ...models.common.retries import PAUSES
from ..config import SourceConfig
from ..formats.records import Format, UnreadableError
from .fetch import FetchError
from .files import FoundFiles, SourceFiles

Stream = Any  # datasets.IterableDataset; the package is imported only where a source needs it
T = TypeVar("T")

FORMATS: dict[tuple[str, ...], Format] = {
    (".parquet",): "parquet",
    (".jsonl", ".json", ".ndjson"): "jsonl",
    (".csv", ".tsv"): "csv",
    (".txt",): "text",
    (".arrow",): "arrow",
}


def find_hub(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Find the files of a dataset by name, with its revision.

    Raises:
        UserError: `datasets` is not installed, or the dataset has no such subset or split.
        FetchError: the hub cannot be reached, or has no such dataset.
    """
    assert config.dataset is not None
    is_local = Path(config.dataset).is_dir()
    revision, licence = config.revision, _local_licence(Path(config.dataset)) if is_local else None
    if not is_local:
        revision, licence = _resolve_revision(config)
    licence = licence or "see the dataset's card"
    origin = f"{config.dataset} {config.subset or ''}".strip() + (f" @ {revision}" if revision else "")
    files = _data_files(config, revision)
    formats: tuple[Format, ...] = tuple(form for file in files if (form := _format_of(file)) is not None)
    if len(formats) < len(files):
        shards = open_stream(config, revision).num_shards
        return SourceFiles("huggingface", licence, "hub", (), origin, shards, is_hub=True)
    found = FoundFiles(config)
    if is_local:
        found.add(config.dataset)
        found.leave_out(f"not of split {config.split} as `datasets` finds it", found.files.keys() - set(files))
    return SourceFiles(
        "huggingface",
        licence,
        "parquet",
        tuple(files),
        origin,
        formats=formats,
        is_hub=True,
        skipped=found.skipped(),
        unreadable=tuple(found.unreadable.items()),
    )


def _data_files(config: SourceConfig, revision: str | None) -> list[str]:
    """The paths or URLs of the files of the split, in order."""

    def find() -> list[str]:
        from datasets import load_dataset_builder

        builder = _with_retries(lambda: load_dataset_builder(str(config.dataset), config.subset, revision=revision))
        splits = builder.config.data_files or {}
        if config.split not in splits:
            raise ValueError(f"there is no split {config.split!r}: it has {', '.join(map(str, splits))}")
        return [str(file) for file in splits[config.split]]

    return _opened(config, find)


def _format_of(file: str) -> Format | None:
    """The format of a file by its name; None for one that only `datasets` can read."""
    name = re.sub(r"\.(gz|zst|xz|bz2)$", "", file.lower())
    return next((form for suffixes, form in FORMATS.items() if name.endswith(suffixes)), None)


def read_shard(config: SourceConfig, revision: str | None, shard: int) -> Iterator[dict[str, Any]]:
    """Read the rows of one shard.

    Raises:
        UnreadableError: `datasets` cannot read on.
    """
    stream = open_stream(config, revision)
    rows = iter(stream.shard(num_shards=stream.num_shards, index=shard))
    while True:
        try:
            row = next(rows, None)
        except OSError:  # the network
            raise
        except Exception as error:  # each library has its own kinds
            raise UnreadableError(_first_line(error)) from error
        if row is None:
            return
        yield row


def revision_of(origin: str) -> str | None:
    """The revision in an origin that `find_hub` made."""
    return origin.rpartition(" @ ")[2] if " @ " in origin else None


# One entry: a worker reads many shards of one dataset, and listing its files takes a call to the hub.
@lru_cache(maxsize=1)
def _open(dataset: str, subset: str | None, split: str, revision: str | None) -> Stream:
    from datasets import load_dataset

    return _with_retries(lambda: load_dataset(dataset, subset, split=split, revision=revision, streaming=True))


@retry(
    stop=stop_after_attempt(3),
    wait=PAUSES,
    retry=retry_if_exception_type((ConnectionError, TimeoutError)),
    reraise=True,
)
def _with_retries(action: Any) -> Any:
    return action()


def open_stream(config: SourceConfig, revision: str | None) -> Stream:
    """Open the dataset as a stream, whose shards are its files.

    Raises:
        UserError, FetchError: as in `find_hub`.
    """
    return _opened(config, lambda: _open(str(config.dataset), config.subset, config.split, revision))


def _opened(config: SourceConfig, action: Callable[[], T]) -> T:
    """Run an action that opens the dataset, and turn its errors into one line."""
    where = f"source {config.label}: dataset {config.dataset}"
    try:
        return action()
    except ImportError as error:
        raise UserError(f'{where} needs the package datasets: pip install "echo-lm[hub]"') from error
    except ValueError as error:  # an unknown subset or split
        raise UserError(f"{where}: {_first_line(error)}: correct subset or split") from error
    except Exception as error:  # network, missing repository, broken files: the libraries raise their own kinds
        raise FetchError(f"{where} cannot be opened ({_first_line(error)}): check its name and the network") from error


def _resolve_revision(config: SourceConfig) -> tuple[str, str | None]:
    """The commit of the revision, or the newest one (fixed, so that later reads are the same), and the licence."""
    name = config.dataset
    assert name is not None
    try:
        from huggingface_hub import HfApi

        info = _with_retries(lambda: HfApi().dataset_info(name, revision=config.revision, timeout=20))
    except ImportError as error:
        raise UserError(f'source {config.label} needs the package datasets: pip install "echo-lm[hub]"') from error
    except Exception as error:
        raise FetchError(
            f"source {config.label}: dataset {name} cannot be found ({_first_line(error)}): "
            "check its name and the network"
        ) from error
    return info.sha, _text_of(info.card_data.license if info.card_data else None)


def _local_licence(folder: Path) -> str | None:
    """The licence in the card of a local folder."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    from huggingface_hub import DatasetCard

    return _text_of(DatasetCard.load(card).data.get("license"))


def _text_of(licence: str | list[str] | None) -> str | None:
    return ", ".join(licence) if isinstance(licence, list) else licence


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
