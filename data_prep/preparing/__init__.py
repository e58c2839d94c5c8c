"""Preparation of raw text: a tokenizer and verified token shards, in two passes over units of work for any number of workers.

Read `prepare.py` (the order of the stages), `slices.py` (units of work), `reading.py` and `cleaning.py` (first pass),
`quarantine.py`, `selection.py` (duplicates and splits), `tokenizer.py`, `encoding.py` and `shards.py` (second pass),
`manifest.py` (contents of a dataset folder).
"""
