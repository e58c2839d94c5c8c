"""The command line, Ray jobs, MLflow tracking."""
