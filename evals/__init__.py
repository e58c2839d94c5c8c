"""Evaluation of models: suites, protocols, scores with intervals, recall sweeps, tables and figures.

Read `config.py` (suites), `registry.py` (evaluation protocols), `protocols/language.py` (one of them), `runner.py` (a suite on a
checkpoint), `summary.py` (the page of a run's results); then `measurements/` for the code that measures, `scores.py`, and
`sweeps/` for training and comparing many small models on recall tasks.
"""
