"""Evaluations in MLflow: each result file is a child of its run, with its values, time and file."""

import math
from typing import TYPE_CHECKING

from .client import equals
from .points import EvaluationResult
from .values import Refusal, metric, mlflow_keys, number, send

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset

PARENT_TAG = "mlflow.parentRunId"
EVALUATION_TAG = "echo_lm.evaluation"
MOST_CHILDREN = 50_000


class EvaluationRuns:
    """The child runs of a run in MLflow, one for each result file."""

    def __init__(self, client: "MlflowClient", experiment: str, parent: str, tags: dict[str, str]):
        """Read from MLflow which children the run has.

        Args:
            tags: of new children.
        """
        self._client, self._experiment, self._parent, self._tags = client, experiment, parent, tags
        runs = client.search_runs([experiment], filter_string=equals(PARENT_TAG, parent), max_results=MOST_CHILDREN)
        self._ids = {run.data.tags.get(EVALUATION_TAG, ""): run.info.run_id for run in runs}

    def send(self, result: EvaluationResult, model: str | None, data: "Dataset | None") -> list[Refusal]:
        """Send a result as a child; one with other values than the file's is deleted and made anew.

        Args:
            model: MLflow's id of the model that was evaluated.
            data: that it was evaluated on.

        Returns:
            names of values that MLflow does not take.
        """
        from mlflow.entities import DatasetInput, LoggedModelInput

        keys = mlflow_keys(result.metrics)
        values = {keys[name]: found for name, value in result.metrics.items() if (found := number(value)) is not None}
        child = self._ids.get(result.name)
        sent = self._client.get_run(child).data.metrics if child else {}
        if child and not all(key in values and math.isclose(values[key], value) for key, value in sent.items()):
            self._client.delete_run(child)
            child, sent = None, {}
        if child is None:
            tags = {**self._tags, PARENT_TAG: self._parent, EVALUATION_TAG: result.name}
            started = int(result.started * 1000)
            run = self._client.create_run(self._experiment, start_time=started, tags=tags, run_name=result.name)
            child = self._ids[result.name] = run.info.run_id
            self._client.log_inputs(
                child,
                datasets=[DatasetInput(data, [])] if data else None,
                models=[LoggedModelInput(model)] if model else None,
            )
        ended = int(result.ended * 1000)
        links = {"model_id": model}
        if data:
            links |= {"dataset_name": data.name, "dataset_digest": data.digest}
        metrics = [metric(key, value, ended, result.step, **links) for key, value in values.items() if key not in sent]
        refused = send(self._client, child, "metrics", [item for item in metrics if item])
        self._client.log_artifact(child, str(result.path))
        self._client.set_terminated(child, "FINISHED", end_time=ended)
        return refused
