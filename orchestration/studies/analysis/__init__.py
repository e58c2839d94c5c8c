"""Fits, figures and the report of a study as pure functions of its plan and records; imports neither Ray nor MLflow.

Read `fit.py`, `loss_law.py`, `recall_law.py`, `isoflop.py`, `solver.py`, then `report.py`, `plots.py` and `captions.py`.
"""
