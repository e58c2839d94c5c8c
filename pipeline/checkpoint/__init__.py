"""Checkpoints that any topology can load: complete or absent, written beside the training.

Read `format.py` (files and names), `writer.py`, `reader.py`, then `zero_state.py` (where DeepSpeed keeps a parameter's state).
"""
