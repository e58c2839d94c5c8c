"""Generators of the synthetic recall tasks."""

from .mixes import MIXES
from .registry import TASKS, check_room, generate, minimum_length, num_queries, task_of
from .seeds import seeded_generator
from .sequences import RecallBatch, TaskCell
from .task import Task
from .vocabulary import RecallVocabulary

Cell = TaskCell  # the name of earlier versions, for task files of users that import it

__all__ = [
    "MIXES",
    "TASKS",
    "Cell",
    "RecallBatch",
    "RecallVocabulary",
    "Task",
    "TaskCell",
    "check_room",
    "generate",
    "minimum_length",
    "num_queries",
    "seeded_generator",
    "task_of",
]
