"""Mixers, feed-forwards, the Echo stack, its baselines and their accounting."""

from .config import AttentionConfig, FeedForwardConfig, Mamba2Config, ModelConfig, SKAConfig
from .errors import UserError
from .loss import language_model_loss
from .optimizer_groups import parameter_groups
from .parameters import ParameterCount, count_parameters
from .presets import preset, preset_names
from .pretrained import from_pretrained, load_state, read_config, save_pretrained
from .stack import EchoLM, build_model

__all__ = [
    "AttentionConfig",
    "EchoLM",
    "FeedForwardConfig",
    "Mamba2Config",
    "ModelConfig",
    "ParameterCount",
    "SKAConfig",
    "UserError",
    "build_model",
    "count_parameters",
    "from_pretrained",
    "language_model_loss",
    "load_state",
    "parameter_groups",
    "preset",
    "preset_names",
    "read_config",
    "save_pretrained",
]
