"""The typed configuration of a run: YAML recipe, dotted overrides, and the resolved form that is stored with the run.

Sections that say *what* is trained (`seed`, `data`, `mixture`, `model`, `train`, and where it starts from) make up the run's
identity; `run` and `evaluation` say *how* and may change when a run is resumed.

Read `train.py` and `sections.py`, then `run_config.py` (all sections together) and `recipe.py` (reading and writing them).
"""

from .recipe import apply_overrides, load_config, load_values, parse_config, recipe_names, save_config
from .run_config import AMENDABLE_SECTIONS, IDENTITY_SECTIONS, RunConfig, RunName
from .sections import EvaluationSection, KeepBestSection, ModelSection, RunSection, StartFromSection
from .train import BatchRampSection, TrainSection

__all__ = [
    "AMENDABLE_SECTIONS",
    "IDENTITY_SECTIONS",
    "BatchRampSection",
    "EvaluationSection",
    "KeepBestSection",
    "ModelSection",
    "RunConfig",
    "RunName",
    "RunSection",
    "StartFromSection",
    "TrainSection",
    "apply_overrides",
    "load_config",
    "load_values",
    "parse_config",
    "recipe_names",
    "save_config",
]
