"""Scaling studies as a library: load one, or any table of (N, D, loss), refit it, compare laws, plot.

    from echo_lm.orchestration.studies import library as studies

    study = studies.load("studies/study-pocket")
    print(study.refit().table())

Read `table.py` (loading), then `refit.py` (fits of a table); a page of examples is docs/guides/studies-library.md. The
statistics are in the package `statistics` beside this one.
"""

from ..statistics.laws import (
    CHINCHILLA,
    DATA_CONSTRAINED,
    KAPLAN,
    LAWS,
    NO_FLOOR,
    ONE_EXPONENT,
    SIZES,
    Law,
    Parameter,
    joint_law,
)
from .refit import Refit
from .table import StudyTable, from_table, load

__all__ = [
    "CHINCHILLA",
    "DATA_CONSTRAINED",
    "KAPLAN",
    "LAWS",
    "NO_FLOOR",
    "ONE_EXPONENT",
    "SIZES",
    "Law",
    "Parameter",
    "Refit",
    "StudyTable",
    "from_table",
    "joint_law",
    "load",
]
