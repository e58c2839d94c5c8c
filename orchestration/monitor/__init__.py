"""The state and the summary of a run, read from its files, as `echo-lm status` and the dashboard show them.

Read `state.py`, `summary.py`, then `status.py`. Files are read by `pipeline.run.reader`.
"""
