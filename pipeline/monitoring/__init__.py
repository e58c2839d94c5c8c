"""Monitoring of a run while it trains: heartbeats, hang and straggler detection, SKA health, step metrics, use of the machine.

Read `metrics.py`, `machine.py`, `heartbeat.py`, `hang.py`, `straggler.py`, then `ska_health.py`.
"""
