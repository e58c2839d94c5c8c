"""The typed configuration of a scaling study, one YAML file: families, sizes, budgets, and the rules for its runs.

Read `sections.py`, then `study.py` (all sections together, loading).
"""

from .sections import BudgetConfig, LearningRateConfig, TrunkConfig
from .study import StudyConfig, load_study, study_names

__all__ = ["BudgetConfig", "LearningRateConfig", "StudyConfig", "TrunkConfig", "load_study", "study_names"]
