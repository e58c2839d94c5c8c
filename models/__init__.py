"""Mixers, feed-forwards, the Echo stack, its baselines and their accounting."""

from .accounting import model_table
from .config import AttentionConfig, FeedForwardConfig, Mamba2Config, ModelConfig, SKAConfig
from .decoding import Cache, generate, prefill, step
from .errors import UserError
from .health import LayerHealth, ska_health
from .loss import language_model_loss, projected_loss, squared_log_partition
from .optimizer_groups import parameter_groups
from .parameters import ParameterCount, count_parameters
from .presets import preset, preset_names
from .pretrained import from_pretrained, load_state, read_config, save_pretrained
from .stack import EchoLM, build_model

__all__ = [
    "AttentionConfig",
    "Cache",
    "EchoLM",
    "FeedForwardConfig",
    "LayerHealth",
    "Mamba2Config",
    "ModelConfig",
    "ParameterCount",
    "SKAConfig",
    "UserError",
    "build_model",
    "count_parameters",
    "from_pretrained",
    "generate",
    "language_model_loss",
    "load_state",
    "model_table",
    "parameter_groups",
    "prefill",
    "preset",
    "preset_names",
    "projected_loss",
    "read_config",
    "save_pretrained",
    "ska_health",
    "squared_log_partition",
    "step",
]
