"""Evaluation protocols, one a file: configuration, cost, measurement and summary. `../registry.py` finds them.

Read `language.py` first, the smallest. The code that measures is in `../measurements/` and is imported when it is needed, so that
a suite can be loaded without torch.
"""
