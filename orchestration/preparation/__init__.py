"""Data preparation with progress, on Ray Data or on processes of this machine.

Read `prepare.py`, then `executors.py`; `mixture.py` and `data_show.py` print the contents of a dataset.
"""
