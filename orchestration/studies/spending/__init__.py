"""The GPU-hours of a study: hours spent so far, and the cells that still fit into `limits.gpu_hours`.

Read `choice.py` (the rule, pure), then `spent.py` (the hours and cells of a folder) and `running.py` (both while the study runs).
"""
