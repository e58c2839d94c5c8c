"""Generators of the synthetic recall tasks."""

from .registry import TASKS, check_room, generate, minimum_length, num_queries, task_of
from .seeds import seeded_generator
from .sequences import Cell, RecallBatch
from .task import Task
from .vocabulary import RecallVocabulary

__all__ = [
    "TASKS",
    "Cell",
    "RecallBatch",
    "RecallVocabulary",
    "Task",
    "check_room",
    "generate",
    "minimum_length",
    "num_queries",
    "seeded_generator",
    "task_of",
]
