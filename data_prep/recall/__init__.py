"""Generators of the synthetic recall tasks."""

from .registry import TASKS, generate, minimum_length
from .seeds import seeded_generator
from .sequences import RecallBatch
from .vocabulary import RecallVocabulary

__all__ = ["TASKS", "RecallBatch", "RecallVocabulary", "generate", "minimum_length", "seeded_generator"]
