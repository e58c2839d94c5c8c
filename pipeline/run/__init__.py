"""The run folder: the only code of the pipeline that reads and writes it.

Read `folder.py` (paths, lock, identity), `events.py` (the logs of events), `supervision.py` (their second writer),
`reader.py` (everything in the folder), then `report.py`.
"""
