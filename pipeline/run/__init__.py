"""Reading and writing of run folders, which no other code of the pipeline does.

Read `folder.py` (paths, lock, identity), `events.py` (the logs of events), `supervision.py` (their second writer),
`lineage.py` (parent and segments), `start.py` and `amend.py` (how they come about), `goodput.py` (what the time went to),
`reader.py` (everything in the folder), then `report.py`.
"""
