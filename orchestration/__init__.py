"""Everything around a training run: the command line, Ray jobs, evaluations beside training, studies, MLflow, status and dashboard.

Read `cli/main.py`, `launch/supervisor.py`, `launch/driver.py`, `ray_train/trainer.py`, `jobs/`, `evaluation/jobs.py`, then
`studies/`, `tracking/`, `monitor/` and `dashboard/`.
"""
