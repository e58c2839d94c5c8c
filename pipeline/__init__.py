"""One training run: config, engine, loop, checkpoints, metrics, report."""
