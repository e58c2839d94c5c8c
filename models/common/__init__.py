"""Helpers that all packages use: the exception for user errors, atomic writing of files, validation messages, file names of a
run folder.

Read `errors.py`, `files.py`, then `run_layout.py`.
"""
