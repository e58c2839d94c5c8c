"""Jobs: one scheduler, its executors and leases, for evaluations, cells of studies and runs of recall sweeps; and Ray clusters.

Read `job.py`, `scheduler.py`, `executors.py`, `ray_executor.py`, `leases.py`, then `cluster.py`.
"""
