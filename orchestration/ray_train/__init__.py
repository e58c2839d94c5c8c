"""The training workers of a run as a Ray Train worker group: placement, checks, restarts, elasticity.

Read `trainer.py`, `backend.py` (process group and checks before the first step), `policies.py` (failures, hangs, elasticity), then
`preflight.py` and `node_checks.py`.
"""
