"""Recall sweeps as jobs: planned and measured by `evals/sweeps`, run on the GPUs of a machine or of a Ray cluster.

Read `group.py` (a job), `queue.py` (which are due), `run.py`, `tables.py`, then `archive.py`.
"""
