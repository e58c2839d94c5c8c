"""The byte-level BPE tokenizer, with document separator and reserved tokens for recall tasks."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ...models.common.errors import UserError
from ...models.common.files import write_text

FILE_NAME = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
RESERVED = tuple(f"<|r{i}|>" for i in range(128))

# Special tokens have the lowest ids, which are then independent of the vocabulary's size.
SPECIAL_TOKENS = (END_OF_TEXT, PAD, *RESERVED)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


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
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def adopt_tokenizer(name: str, special_tokens: tuple[str, ...] = ()) -> Tokenizer:
    """Load an existing tokenizer: a `tokenizer.json`, its folder, or a name on the Hugging Face hub.

    Missing special tokens (document separator, padding, those of recall tasks) are appended to its vocabulary.

    Raises:
        UserError: no tokenizer there, or the hub cannot be reached.
    """
    path = Path(name).expanduser()
    try:
        if path.exists():
            tokenizer = Tokenizer.from_file(str(path / FILE_NAME if path.is_dir() else path))
        else:
            tokenizer = Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exception
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"tokenizer {name} cannot be loaded ({reason}): name a tokenizer.json, or one of the hub and check the network"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, *special_tokens])
    reserved_start(tokenizer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write `tokenizer.json` into `folder` atomically."""
    path = folder / FILE_NAME
    write_text(path, tokenizer.to_str(pretty=True) + "\n")
    return path


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` from a dataset's or a model's folder, or a tokenizer file itself.

    Strings of special tokens in a text are encoded as plain text: a document cannot forge a border.

    Raises:
        UserError: the file is missing, no tokenizer, or lacks the document separator.
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
