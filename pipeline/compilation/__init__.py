"""Compilation of the kernels of a run before its first step; read `passes.py`, then `kernels.py`."""
