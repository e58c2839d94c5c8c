"""Orchestration of training runs: command line, Ray jobs, evaluations during training, studies, MLflow, status and dashboard.

Read `cli/main.py`, `launch/supervisor.py`, `launch/driver.py`, `ray_train/trainer.py`, `jobs/`, `evaluation/jobs.py`, then
`studies/`, `tracking/`, `monitor/` and `dashboard/`.
"""
