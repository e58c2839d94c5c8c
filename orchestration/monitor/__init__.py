"""What a run is doing, read from its files: the state and the summary that `echo-lm status` and the dashboard show.

Read `state.py`, `summary.py`, `status.py`, then `cached_files.py`.
"""
