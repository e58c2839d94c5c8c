"""`config.json` of a stored model: our config, and the field by which `transformers` knows whose it is."""

from pathlib import Path

from .common.errors import UserError
from .common.files import read_json, write_json
from .config import ModelConfig

CONFIG = "config.json"
MODEL_TYPE = "echo_lm"  # by which `transformers` finds the class, see huggingface.py


def write_config(config: ModelConfig, folder: Path) -> None:
    """Write the config of a model that is stored in `folder`."""
    write_json(folder / CONFIG, {"model_type": MODEL_TYPE, "echo": config.model_dump(mode="json")})


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
