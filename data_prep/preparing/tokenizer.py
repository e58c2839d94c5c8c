"""The byte-level BPE tokenizer, with document separator and reserved tokens for recall tasks."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ...models.common.errors import UserError
from ...models.common.files import read_json, write_text
from ...models.common.validation import first_line
from ...models.stored_config import write_tokenizer_config

FILE_NAME = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
RESERVED = tuple(f"<|r{i}|>" for i in range(128))

# Special tokens have the lowest ids, which are then independent of the vocabulary's size.
SPECIAL_TOKENS = (END_OF_TEXT, PAD, *RESERVED)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
LONGEST_STRETCH = 1_000
HUB_SECONDS = 10
MOST_HOLES = 100_000
_STRETCH = re.compile(rf"\S{{{LONGEST_STRETCH + 1},}}|\s{{{LONGEST_STRETCH + 1},}}")


def train_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: tuple[str, ...] = ()) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` ids; fewer if the text has no more pairs to merge.

    Raises:
        UserError: the special tokens leave no room for the bytes.
    """
    if vocab_size < SMALLEST_VOCABULARY + len(special_tokens):
        raise UserError(f"vocab_size={vocab_size} is too small: {SMALLEST_VOCABULARY + len(special_tokens)} at least")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(cut_stretches(texts), trainer)
    return tokenizer


def cut_stretches(texts: Iterable[str]) -> Iterator[str]:
    """Cut texts inside stretches of white space, or without any, that are longer than `LONGEST_STRETCH` characters.

    Training a BPE takes time quadratic in the length of a pre-token; a DNA sequence or a million spaces are one.
    """
    for text in texts:
        begin = 0
        for match in _STRETCH.finditer(text):
            for cut in range(match.start() + LONGEST_STRETCH, match.end(), LONGEST_STRETCH):
                yield text[begin:cut]
                begin = cut
        yield text[begin:] if begin else text


def adopt_tokenizer(name: str, special_tokens: tuple[str, ...] = ()) -> Tokenizer:
    """Load an existing tokenizer: a `tokenizer.json`, its folder, or a name on the Hugging Face hub.

    Missing special tokens (document separator, padding, those of recall tasks) are appended behind its highest id; ids that
    no token has are named `<|unused5|>`, so that the size of the vocabulary is the highest id and one.

    Raises:
        UserError: no tokenizer there, the hub cannot be reached, or two of its tokens share an id.
    """
    own = [*SPECIAL_TOKENS, *special_tokens]
    try:
        path = tokenizer_file(name) or _file_of_hub(name)
        values = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_str(json.dumps(_without_holes(values, name, own)))
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"tokenizer {name} cannot be loaded ({first_line(error)}): name a tokenizer.json, or one of the hub and check "
            "the network"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens(own)
    reserved_start(tokenizer)
    check_ids(tokenizer, name)
    return tokenizer


def tokenizer_file(name: str) -> Path | None:
    """The path of a tokenizer's file on this machine; None for a name on the hub."""
    path = Path(name).expanduser()
    if not path.exists():
        return None
    return path / FILE_NAME if path.is_dir() else path


def _file_of_hub(name: str) -> Path:
    """Download the `tokenizer.json` of a model on the hub, or take it from the cache if the hub does not answer."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        # This call fails at once without network, whereas a download retries for half a minute.
        revision = HfApi().model_info(name, timeout=HUB_SECONDS).sha
        return Path(hf_hub_download(name, FILE_NAME, revision=revision))
    except Exception as error:
        try:
            return Path(hf_hub_download(name, FILE_NAME, local_files_only=True))
        except Exception:
            raise error from None


def _without_holes(values: dict[str, Any], name: str, own: list[str]) -> dict[str, Any]:
    """The contents of a tokenizer's file with holes in its ids filled, and with those tokens of `own` that it has marked as
    special.

    The library numbers a new token by how many there are, so that behind a hole it would get the id of another.
    """
    for entry in values.get("added_tokens", ()):
        entry["special"] = entry["special"] or entry["content"] in own
    vocabulary = values["model"]["vocab"]
    if not isinstance(vocabulary, dict):  # a list, numbered by position
        return values
    ids = {**vocabulary, **{entry["content"]: entry["id"] for entry in values.get("added_tokens", ())}}
    size = max(ids.values(), default=-1) + 1
    if size > len(ids) + MOST_HOLES:
        raise UserError(f"tokenizer {name}: {len(ids)} tokens have ids up to {size - 1}: renumber them")
    holes = sorted(set(range(size)) - set(ids.values()))
    vocabulary.update({f"<|unused{token}|>": token for token in holes})
    return values


def check_ids(tokenizer: Tokenizer, name: str | Path) -> None:
    """Check that no two tokens have one id.

    Raises:
        UserError: names two that do.
    """
    tokens: dict[int, str] = {}
    for token, token_id in tokenizer.get_vocab().items():
        if (other := tokens.setdefault(token_id, token)) != token:
            first, second = sorted((token, other))
            raise UserError(
                f"tokenizer {name}: {first!r} and {second!r} have the same id {token_id}: renumber one of them"
            )


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The vocabulary size that a model's embedding needs: the highest id plus one, more than the number of tokens if ids have
    holes."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write `tokenizer.json` into `folder` atomically."""
    path = folder / FILE_NAME
    write_text(path, tokenizer.to_str(pretty=True) + "\n")
    return path


def copy_tokenizer(file: Path, folder: Path) -> None:
    """Copy a `tokenizer.json` into a model's folder, with the settings beside it that `transformers` wants."""
    shutil.copyfile(file, folder / FILE_NAME)
    ids = {token["content"]: token["id"] for token in read_json(file).get("added_tokens", ())}
    if END_OF_TEXT in ids and PAD in ids:
        write_tokenizer_config(folder, end=(END_OF_TEXT, ids[END_OF_TEXT]), padding=(PAD, ids[PAD]))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` from a dataset's or a model's folder, or a tokenizer file itself.

    Strings of special tokens in a text are encoded as plain text: a document cannot forge a border.

    Raises:
        UserError: the file is missing, no tokenizer, or lacks the document separator, or two of its tokens share an id.
    """
    path = Path(folder)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} is missing: prepare the dataset, or copy the tokenizer of the model there")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not a tokenizer of the `tokenizers` library ({error})") from error
    tokenizer.encode_special_tokens = True
    end_of_text(tokenizer)
    check_ids(tokenizer, path)
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the token that ends every document."""
    return _id_of(tokenizer, END_OF_TEXT)


def reserved_start(tokenizer: Tokenizer) -> int:
    """Id of `<|r0|>`, the first of the 128 contiguous ids of the recall tasks: `RecallVocabulary(first_id=...)`.

    Raises:
        UserError: the tokenizer has no such tokens, or they are not contiguous.
    """
    first = _id_of(tokenizer, RESERVED[0])
    if [tokenizer.token_to_id(token) for token in RESERVED] != list(range(first, first + len(RESERVED))):
        raise UserError(f"the tokenizer's {RESERVED[0]} to {RESERVED[-1]} are not contiguous: train one of our own")
    return first


def _id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise UserError(f"the tokenizer has no token {token}: it was not made by `echo-lm prepare`")
    return token_id
