"""Jobs that many processes share: leases on files, the scheduler that keeps workers busy, the Ray cluster below, queues of sweeps.

Read `leases.py`, `scheduler.py`, `cluster.py`, then `sweep_queue.py`.
"""
