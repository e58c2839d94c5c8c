"""Saving and loading of weights: a folder with `model.safetensors` and `config.json`, both written atomically.

Folders that `save_pretrained` of `transformers` wrote are read too: there every name has the wrapper's prefix, and large models
lie in several files that an index names.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .common.errors import UserError
from .common.files import read_json, write_aside
from .model import EchoLM, build_model, check_device
from .stored_config import read_config, write_config

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of `transformers`: {"weight_map": {tensor: file}}
PREFIX = "model."  # of `transformers`: the attribute of `EchoForCausalLM` that holds our model


def save_pretrained(model: EchoLM, folder: str | Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Write the weights and the config of a model.

    Args:
        state_dict: what to write instead of the model's own tensors (a state consolidated from many ranks).

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    folder = Path(folder)
    tensors = {name: t.detach().cpu().contiguous() for name, t in (state_dict or model.state_dict()).items()}
    with write_aside(folder / WEIGHTS) as aside:
        save_file(tensors, aside, metadata={"format": "pt"})
    write_config(model.config, folder)


def from_pretrained(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> EchoLM:
    """Read a model that `save_pretrained` wrote, ours or that of `transformers`.

    Args:
        dtype: of the parameters; default: as stored.

    Raises:
        UserError: a file is missing or damaged, the weights are those of another architecture, or a layer needs a package on
            the device that is not installed.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_device(config, device)
    tensors = {}
    for path in _weight_files(folder):
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): take another checkpoint") from error
    if tensors and all(name.startswith(PREFIX) for name in tensors):
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    model = build_model(config, device="meta")
    load_state(model, tensors, where=str(folder / WEIGHTS))
    return model.to(device=device, dtype=dtype)


def _weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights: one, or those that an index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder / WEIGHTS} is missing: name a folder written by save_pretrained")
    names = read_json(folder / INDEX).get("weight_map", {})
    files = [folder / name for name in sorted(set(names.values()))]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is missing, which {folder / INDEX} names: copy it there, or save the model again")
    return files


def load_state(model: EchoLM, tensors: Mapping[str, Tensor], *, where: str = "the state") -> None:
    """Put a complete state dict into a model (parameters of a meta model are replaced, others are overwritten).

    Raises:
        UserError: a tensor is missing, surplus or of another shape; the model is unchanged.
    """
    want = model.state_dict()
    name = model.config.name
    if missing := sorted(want.keys() - tensors.keys()):
        raise UserError(f"{where} lacks {_some(missing)} of {name}: it is of another architecture")
    if surplus := sorted(tensors.keys() - want.keys()):
        raise UserError(f"{where} holds {_some(surplus)}, which {name} does not have: it is of another architecture")
    for key, tensor in tensors.items():
        if tensor.shape != want[key].shape:
            raise UserError(f"{where}: {key} has shape {list(tensor.shape)}, but {name} needs {list(want[key].shape)}")
    model.load_state_dict(dict(tensors), assign=any(t.is_meta for t in want.values()))


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
