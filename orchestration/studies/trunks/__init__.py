"""Trunks of a study: one training at a constant learning rate for each family, size and seed, from which every budget branches.

Read `planning.py` (the trunks of a plan, and what they save), then `job.py` (training them), `branching.py` (where a cell begins).
"""
