"""Scaling studies: planned, priced, run cell by cell, fitted and reported.

Read `config.py` (the question), `plan.py` (the cells), `run.py` and `cell.py` (running them), `results.py` (a cell's
measurements), then `analysis/` (laws, figures, report).
"""
