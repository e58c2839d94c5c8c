"""The run folder: the only code of the pipeline that reads and writes it.

Read `folder.py` (paths, lock, identity), `events.py` and `supervision.py` (the logs of events),
`reader.py` (a whole run), then `report.py`.
"""
