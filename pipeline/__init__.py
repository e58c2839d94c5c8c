"""One training run, without Ray and MLflow: configuration, DeepSpeed engine, training loop, checkpoints, monitoring, run folder.

Read `config/`, `loop.py`, `update.py`, `engine/`, `mesh.py`; then `checkpoint/`, `run/` and `monitoring/`.
"""
