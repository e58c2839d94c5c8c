"""Raw text to a tokenizer and verified token shards, in two passes that any number of workers share.

Read `prepare.py` (the order of the stages), `slices.py` (units of work), `reading.py` and `cleaning.py` (first pass),
`selection.py` (duplicates and splits), `tokenizer.py`, `shards.py` (second pass), `manifest.py` (what a dataset folder
holds).
"""
