"""`echo-lm track`: replay a run's files into MLflow."""

from ..progress.bars import console
from .options import RunPath, Tracking


def track(
    run: RunPath,
    tracking_uri: Tracking = None,
) -> None:
    """Replay a run's files into MLflow. A repetition adds nothing."""
    from ..tracking.mlflow import track as replay

    console.print(f"{run} is in MLflow as run {replay(run, tracking_uri)}")
