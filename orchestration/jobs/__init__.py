"""Jobs shared by many processes: leases as files, the scheduler of a pool of workers, the Ray cluster, queues of recall sweeps.

Read `leases.py`, `scheduler.py`, `cluster.py`, then `sweep_queue.py`.
"""
