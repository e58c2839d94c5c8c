"""Starting a run and restarting it after failures: in plain processes, on Ray under a supervisor, or as a Ray job.

Read `target.py`, `train.py` (plain processes), `run.py` and `supervisor.py` (outside Ray), `driver.py` (inside),
`submit.py`; `branch.py` and `amend.py` begin a run from another one and change one on the way,
`checkpoint.py` has one save its state.
"""
