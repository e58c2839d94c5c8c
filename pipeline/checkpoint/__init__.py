"""Checkpoints: loadable into any topology, complete or absent, written in the background while training goes on.

Read `format.py` (files and names), `writer.py`, `reader.py`, `restore.py` (which state a run goes on from), then
`zero_state.py` (DeepSpeed's layout of a parameter's state); `moving_average.py` and `average.py` average weights.
"""
