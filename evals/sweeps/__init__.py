"""Recall sweeps: many small models trained on recall tasks at several learning rates and seeds, and evaluated on the same queries.

Read `config.py` (what a sweep file says), `runs.py` (its runs), `trainer.py`, `measure.py`, `run.py` (the command), then
`results.py` and `report.py`. The sweeps of the documentation are in `configs/`.
"""
