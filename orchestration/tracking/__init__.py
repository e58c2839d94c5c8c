"""The record of a run in MLflow, rebuilt from the run's files: read `mlflow.py`, then `points.py`, `values.py`, `store.py`."""
