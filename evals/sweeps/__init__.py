"""Recall sweeps: many small models trained on recall tasks at several learning rates and seeds, and evaluated on the same queries.

Read `config.py` (what a sweep file says), `runs.py` (its runs), `trainer.py`, `measure.py`, `plan.py` (what is to be run next),
`result_files.py`, then `results.py` and `report.py`. `orchestration/sweeps` runs them. The sweeps of the documentation are in
`configs/`.
"""
