"""Data preparation with progress, on Ray Data or on processes of this machine.

Read `prepare.py`, then `executors.py`; `mixture.py`, `data_show.py` and `verify.py` print what is in a dataset, and
`data_recipe.py` reads recipes without sections on training.
"""
