"""Checks of a study before it costs anything: its loss is measured, its folder belongs to it, its design can answer the question.

Read `checks.py` (refusals), then `design.py` (what the planned cells can tell, by simulation).
"""
