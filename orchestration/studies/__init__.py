"""Scaling studies: planned, priced, run cell by cell, fitted and reported.

Read `config/` (the question), `plan.py` (the cells), `run.py` and `cell.py` (running them), `results.py` (a cell's
measurements), then `statistics/` (laws and fits), `analysis/` (a study's fits, figures, report), `preflight/` (what is said before
anything is paid) and `library/` (the same in a notebook).
"""
