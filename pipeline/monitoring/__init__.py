"""Monitoring of a run while it trains: heartbeats, hang and straggler detection, SKA health, step metrics.

Read `metrics.py`, `heartbeat.py`, `hang.py`, `straggler.py`, then `ska_health.py`.
"""
