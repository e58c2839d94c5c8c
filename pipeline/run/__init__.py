"""The run folder: the only code of the pipeline that reads and writes it.

Read `folder.py` (paths, lock, identity), `events.py` (the logs of events), `supervision.py` (their second writer),
`lineage.py` (parent and segments), `start.py` and `amend.py` (how they come about), `goodput.py` (what the time went to),
`reader.py` (everything in the folder), then `report.py`.
"""
