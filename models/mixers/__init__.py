"""Sequence mixers, one file each: read `base.py` (what a mixer states and does), `registry.py`, then `ska.py`."""
