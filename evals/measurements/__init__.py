"""Functions that measure a model in memory, without a suite or a checkpoint; `protocols/` and `sweeps/` call them.

Read `recall_cells.py` (the cells of recall grids), `recall.py`, `language.py`, then the others in any order.
"""
