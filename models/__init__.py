# ruff: noqa: F401 (the first imports are for editors alone)
"""Models: sequence mixers, feed-forwards, the Echo stack, its baselines, and their counts of parameters, FLOPs and bytes.

The names below are imported on first use: importing torch takes seconds and 200 MB, and neither the command line nor the
workers that prepare data need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accounting import ParameterCount, count_parameters
    from .common.errors import UserError
    from .config import AttentionConfig, FeedForwardConfig, Mamba2Config, ModelConfig, SKAConfig
    from .decoding import Cache, generate, prefill, step
    from .health import LayerHealth, ska_health
    from .loss import language_model_loss, projected_loss, squared_log_partition
    from .model import EchoLM, build_model
    from .optimizer_groups import parameter_groups
    from .presets import preset, preset_names
    from .pretrained import from_pretrained, load_state, save_pretrained
    from .stored_config import read_config
    from .table import model_table

_NAMES = {
    "config": ("AttentionConfig", "FeedForwardConfig", "Mamba2Config", "ModelConfig", "SKAConfig"),
    "decoding": ("Cache", "generate", "prefill", "step"),
    "common.errors": ("UserError",),
    "health": ("LayerHealth", "ska_health"),
    "loss": ("language_model_loss", "projected_loss", "squared_log_partition"),
    "optimizer_groups": ("parameter_groups",),
    "accounting": ("ParameterCount", "count_parameters"),
    "presets": ("preset", "preset_names"),
    "pretrained": ("from_pretrained", "load_state", "save_pretrained"),
    "model": ("EchoLM", "build_model"),
    "stored_config": ("read_config",),
    "table": ("model_table",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]  # it takes the imports above


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
