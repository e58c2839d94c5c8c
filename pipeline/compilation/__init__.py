"""Compilation of the kernels of a run beside the start of its training; read `passes.py`, `kernels.py`, then `beside.py`,
`process.py` and `waiting.py`."""
