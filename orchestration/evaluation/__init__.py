"""Evaluations of the checkpoints of runs: beside training, by hand, or by a watcher of many runs.

Read `jobs.py` (which evaluations are due), `by_hand.py`, `watcher.py`, then `generate.py`.
"""
