"""`echo-lm train`: training in plain processes, without Ray and MLflow."""

from pathlib import Path

from .options import Amend, Data, Overrides, Runs, Target, Trust


def train(
    target: Target,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    data: Data = None,
    trust: Trust = False,
    amend: Amend = False,
) -> None:
    """Train in plain processes: no Ray, no MLflow. Resumes from the last complete checkpoint of its run folder."""
    from ..launch.target import data_root, resolve_target
    from ..launch.train import train_run

    config, run = resolve_target(target, overrides, runs)
    if amend:
        from ..launch.amend import amend_run  # imports what reads checkpoints: seconds

        amend_run(run, config, trust=trust)
    train_run(config, run, data_root(target, data), trust=trust)
