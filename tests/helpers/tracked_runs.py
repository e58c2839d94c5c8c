"""Small run folders for tests of their record in MLflow, and what that record holds."""

from pathlib import Path

from echo_lm.models.common.files import write_json
from echo_lm.orchestration.tracking.client import default_tracking_uri
from echo_lm.pipeline.run.events import EventLog

START = 1_700_000_000.0
ACCURACY = "recall/sysprompt-4/length-64"


def write_steps(log: EventLog, first: int, last: int, late: float = 0) -> None:
    for step in range(first, last + 1):
        log.write("step", time=START + step + late, step=step, loss=5 / step, tokens=step * 64, grad_norm=float("nan"))


def write_evaluation(folder: Path, step: int, accuracy: float, suite: str = "recall-quick", **more: object) -> None:
    metrics = {ACCURACY: accuracy} | more
    times = {"started": START + step + 100, "ended": START + step + 105}
    result = {"suite": suite, "step": step, **times, "metrics": metrics}
    write_json(folder / "evals" / f"step_{step:08d}" / f"{suite}.json", result)


def client(folder: Path):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=default_tracking_uri(folder))


def everything(folder: Path) -> list:
    mlflow = client(folder)
    return mlflow.search_runs([experiment.experiment_id for experiment in mlflow.search_experiments()])


def all_runs(folder: Path) -> list:
    """Without those of evaluations."""
    return [run for run in everything(folder) if "mlflow.parentRunId" not in run.data.tags]


def history(folder: Path, run: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client(folder).get_metric_history(run, key))


def children(folder: Path, run: str) -> list:
    """The evaluations' runs below a run."""
    return [child for child in everything(folder) if child.data.tags.get("mlflow.parentRunId") == run]
