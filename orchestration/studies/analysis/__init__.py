"""Fits, figures and the report of a study as pure functions of its plan and records; imports neither Ray nor MLflow.

Read `measured.py` (the records as the study asks for them), `loss_fits.py`, `fit.py` and `records.py` (what is fitted), then
`report.py`, `sections.py`, `plots.py` and `captions.py`. The statistics themselves are in `statistics/`.
"""
