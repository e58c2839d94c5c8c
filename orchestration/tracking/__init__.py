"""The record of a run in MLflow, rebuilt from the run's files.

Read `mlflow.py`, then `points.py`, `evaluations.py`, `checkpoints.py`, `values.py`, `store.py`.
"""
