"""The small files of a stored model: `config.json`, and the files that `transformers` needs to open the folder.

With them `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` and
`lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True` open a checkpoint where Echo-LM is installed.
Nothing here imports `transformers`.
"""

from pathlib import Path

from .common.errors import UserError
from .common.files import read_json, write_json, write_text
from .config import ModelConfig

CONFIG = "config.json"
MODEL_TYPE = "echo_lm"  # of `config.json`, by which `transformers` knows the family once huggingface.py is imported
CODE = "modeling_echo_lm.py"
CONFIG_FIELDS = {
    "model_type": MODEL_TYPE,
    "architectures": ["EchoForCausalLM"],
    "auto_map": {
        "AutoConfig": "modeling_echo_lm.EchoHFConfig",
        "AutoModelForCausalLM": "modeling_echo_lm.EchoForCausalLM",
    },
}
_CODE_TEXT = '''"""Lets `transformers` find this model in the installed package echo-lm (`trust_remote_code=True`)."""

from echo_lm.models.huggingface import EchoForCausalLM, EchoHFConfig

__all__ = ["EchoForCausalLM", "EchoHFConfig"]
'''


def write_config(config: ModelConfig, folder: Path) -> None:
    """Write the config of a model that is stored in `folder`, and the module that its `auto_map` names."""
    write_json(folder / CONFIG, CONFIG_FIELDS | {"echo": config.model_dump(mode="json")})
    write_code(folder)


def read_config(folder: str | Path) -> ModelConfig:
    """The config of a stored model.

    Raises:
        UserError: it is missing, is not JSON or is not a model config.
    """
    path = Path(folder) / CONFIG
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a model config but a JSON {type(values).__name__}")
    if not isinstance(values.get("echo"), dict):
        raise UserError(f'{path} is not a config of ours: it has no "echo" with the model in it')
    return ModelConfig.from_dict(values["echo"], where=str(path))


def write_code(folder: Path) -> None:
    """Write the module that `auto_map` in `config.json` names."""
    write_text(folder / CODE, _CODE_TEXT)


def write_tokenizer_config(folder: Path, *, end: tuple[str, int], padding: tuple[str, int]) -> None:
    """Write `tokenizer_config.json` and `generation_config.json` beside a `tokenizer.json`.

    Args:
        end: the token that ends a document, and its id; generation stops there.
        padding: the padding token and its id.
    """
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end[0],  # one token separates documents: it also stands before each but the first
            "eos_token": end[0],
            "pad_token": padding[0],
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": end[1], "eos_token_id": end[1], "pad_token_id": padding[1]},
    )
