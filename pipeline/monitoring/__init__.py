"""What watches a run while it trains: heartbeats and hangs, stragglers, SKA health, step metrics.

Read `metrics.py`, `heartbeat.py`, `hang.py`, `straggler.py`, then `ska_health.py`.
"""
