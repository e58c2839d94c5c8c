"""Evaluation of models: suites, protocols, scores with intervals, recall sweeps, tables and figures.

Read `config.py` (suites), `runner.py` (a suite on a checkpoint), `protocols/` (how each thing is measured), `scores.py`; then
`sweeps/` for training and comparing many small models on recall tasks.
"""
