"""Helpers of every folder: the user's error, files that a crash cannot tear, validation messages, the names in a run folder.

Read `errors.py`, `files.py`, then `run_layout.py`.
"""
