"""Data preparation as jobs with progress: on Ray Data, or on the processes of this machine.

Read `prepare.py`, then `executors.py`; `mixture.py` and `data_show.py` print what a dataset holds.
"""
