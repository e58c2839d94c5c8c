"""What is said of a study before anything is paid: its loss is measured, its folder is its own, its design can answer the question.

Read `checks.py` (refusals), then `design.py` (what the planned cells can tell, by simulation).
"""
