"""Datasets of the Hugging Face hub, or local folders of the same layout, streamed through `datasets`.

The unit is a row group of a parquet file (a whole file in other formats): `IterableDataset.reshard` numbers
them, so that any worker can read any of them independently.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from ...models.common.errors import UserError
from ...models.common.retries import PAUSES
from ..config import SourceConfig
from .fetch import FetchError
from .files import SourceFiles

Stream = Any  # datasets.IterableDataset; the package is imported only where a source needs it


def find_hub(config: SourceConfig, downloads: Path) -> SourceFiles:
    """Find a dataset by name, with its revision and its number of row groups.

    Raises:
        UserError: `datasets` is not installed, or the dataset has no such subset or split.
        FetchError: the hub cannot be reached, or has no such dataset.
    """
    assert config.dataset is not None
    revision, licence = config.revision, _local_licence(Path(config.dataset))
    if not Path(config.dataset).is_dir():
        revision, licence = _resolve_revision(config)
    stream = open_stream(config, revision)
    origin = f"{config.dataset} {config.subset or ''}".strip() + (f" @ {revision}" if revision else "")
    return SourceFiles("huggingface", licence or "see the dataset's card", "hub", (), origin, stream.num_shards)


def read_shard(config: SourceConfig, revision: str | None, shard: int) -> Iterator[dict[str, Any]]:
    """Read the rows of one row group, with the columns that the source needs."""
    stream = open_stream(config, revision)
    columns = [name for name in (config.text_column, *config.keep, *config.at_least) if name in _columns(stream)]
    stream = stream.select_columns(columns) if columns else stream
    yield from stream.shard(num_shards=stream.num_shards, index=shard)


def _columns(stream: Stream) -> list[str]:
    return stream.column_names or stream.resolve_features().column_names or []


def revision_of(origin: str) -> str | None:
    """The revision in an origin that `find_hub` made."""
    return origin.rpartition(" @ ")[2] if " @ " in origin else None


# One entry: a worker reads many row groups of one dataset, and listing its files takes a call to the hub.
@lru_cache(maxsize=1)
def _open(dataset: str, subset: str | None, split: str, revision: str | None) -> Stream:
    from datasets import load_dataset

    return _with_retries(
        lambda: load_dataset(dataset, subset, split=split, revision=revision, streaming=True).reshard()
    )


@retry(
    stop=stop_after_attempt(3),
    wait=PAUSES,
    retry=retry_if_exception_type((ConnectionError, TimeoutError)),
    reraise=True,
)
def _with_retries(action: Any) -> Any:
    return action()


def open_stream(config: SourceConfig, revision: str | None) -> Stream:
    """Open the dataset as a stream whose shards are row groups.

    Raises:
        UserError, FetchError: as in `find_hub`.
    """
    assert config.dataset is not None
    where = f"source {config.label}: dataset {config.dataset}"
    try:
        return _open(config.dataset, config.subset, config.split, revision)
    except ImportError as error:
        raise UserError(f'{where} needs the package datasets: pip install "echo-lm[hub]"') from error
    except ValueError as error:  # an unknown subset or split
        raise UserError(f"{where}: {_first_line(error)}: correct subset or split") from error
    except Exception as error:  # network, missing repository, broken files: the libraries raise their own kinds
        raise FetchError(f"{where} cannot be opened ({_first_line(error)}): check its name and the network") from error


def _resolve_revision(config: SourceConfig) -> tuple[str, str | None]:
    """The commit of the revision, or the newest one (fixed, so that later reads are the same), and the licence."""
    try:
        from huggingface_hub import HfApi

        info = _with_retries(lambda: HfApi().dataset_info(config.dataset, revision=config.revision, timeout=20))
    except ImportError as error:
        raise UserError(f'source {config.label} needs the package datasets: pip install "echo-lm[hub]"') from error
    except Exception as error:
        raise FetchError(
            f"source {config.label}: dataset {config.dataset} cannot be found ({_first_line(error)}): "
            "check its name and the network"
        ) from error
    return info.sha, _text_of(info.card_data.license if info.card_data else None)


def _local_licence(folder: Path) -> str | None:
    """The licence in the card of a local folder."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    from huggingface_hub import DatasetCard

    return _text_of(DatasetCard.load(card).data.license)


def _text_of(licence: str | list[str] | None) -> str | None:
    return ", ".join(licence) if isinstance(licence, list) else licence


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
