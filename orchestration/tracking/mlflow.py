"""The record of a run in MLflow, rebuilt from the run's files.

The files are the truth; MLflow is a view of them. Sent values are read back from MLflow itself, so an interrupted replay
resumes where it stopped, and a second one sends nothing.
"""

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ...evals.layout import complete_checkpoints, result_files, stored_config
from ...models.common.cached_files import Stamp, stamp
from ...models.common.errors import UserError
from ...models.common.files import read_json, sha256_file, write_text
from ...models.common.run_layout import CONFIG, ENVIRONMENT, MODEL, REPORT
from ...pipeline.run.events import EventReader
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.identity import run_id
from .client import default_tracking_uri, experiment_id, mlflow_client, one_line
from .model_card import FILE as MODEL_CARD
from .model_card import model_card
from .points import Point, chunks, evaluation_points, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

RUN_TAG = "echo_lm.run_id"
# Limits of one `log_batch` call, and of a parameter's value, set by MLflow.
METRICS_A_CALL, PARAMS_A_CALL, PARAM_CHARACTERS = 1000, 100, 6000
ARTIFACTS = (CONFIG, ENVIRONMENT, REPORT, "figures/*.png", "evals/summary.md", "evals/figures/*.png")
PARENT_TAG = "mlflow.parentRunId"
EVALUATION_TAG = "echo_lm.evaluation"


def track(run_folder: Path, tracking_uri: str | None = None) -> str:
    """Replay a run into MLflow, finished or not; a repetition adds nothing.

    Args:
        tracking_uri: a server, or a sqlite file; `mlflow.db` beside the folder of runs if None.

    Returns:
        the id of the run in MLflow.

    Raises:
        UserError: not a run folder, or MLflow cannot be reached.
    """
    tracker = Tracker(run_folder, tracking_uri)
    try:
        return tracker.send()
    except UserError:
        raise
    except Exception as error:  # any error below MLflow's client: HTTP, SQL, the file system
        raise UserError(
            f"MLflow at {tracker.uri} does not answer ({one_line(error)}): start it and run this again"
        ) from error


class Tracker:
    """Sends new events and files of a run folder to MLflow; called repeatedly while the run goes on.

    A value is sent once. A step that is repeated after a crash has the same numbers, so either of its records is right.
    """

    def __init__(
        self,
        run_folder: Path,
        tracking_uri: str | None = None,
        tags: dict[str, str] | None = None,
        *,
        outage_logged: bool = False,
    ):
        """Does not talk to MLflow yet.

        Args:
            tags: set on a new run.
            outage_logged: do not log an outage again.

        Raises:
            UserError: `run_folder` holds no run, or its configuration was damaged.
        """
        self.run_folder = Path(run_folder)
        stored_config(self.run_folder)
        self.uri = tracking_uri or default_tracking_uri(self.run_folder)
        self._tags = tags or {}
        self._outage = outage_logged
        self._reset()

    def sync(self) -> bool:
        """Send new events and files; True if MLflow now has everything in the folder.

        Never raises: training must not end because its record cannot be written. An outage is logged once, and the
        first call that succeeds after it catches up.
        """
        try:
            self.send()
        except Exception as error:
            if not self._outage:
                logger.warning("MLflow at %s: %s; the run goes on, and this catches up", self.uri, one_line(error))
            self._outage = True
            # A failed call may have had an effect: the state is read from MLflow again.
            self._reset()
            return False
        self._outage = False
        return True

    def send(self) -> str:
        """Send new events and files; returns MLflow's id of the run, and raises any error."""
        with FileLock(self.run_folder / ".tracking.lock"):
            client = self._client or mlflow_client(self.uri)
            self._client = client
            events = self._events.read()
            if self._events.restarted:
                self._skipped = self._starts = 0
            evaluations = self._changed(result_files(self.run_folder))
            if self._run_id is None:
                self._run_id = self._find_or_create(client, events)
                self._send_parameters(client)
                self._send_data(client)
            self._send_points(client, [*self._event_points(events), *evaluation_points(evaluations)])
            finished = self._send_status(client, events)
            self._send_evaluations(client, evaluations)
            self._send_artifacts(client, evaluations)
            for pattern in ARTIFACTS:
                self._send_artifacts(client, self._changed(sorted(self.run_folder.glob(pattern))))
            if finished:  # until then they grow
                files = RunFolder(self.run_folder)
                self._send_artifacts(client, self._changed([files.events_file, files.supervision_file]))
                self._register(client)
            return self._run_id

    def _reset(self) -> None:
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._events = EventReader.of_run(self.run_folder)
        self._sent: dict[str, set[int]] = {}  # steps that MLflow has, by metric
        self._children: dict[str, str] = {}  # ids of the evaluations' runs, by name
        self._uploaded: dict[Path, Stamp] = {}  # time of change and size, by file
        self._skipped = 0
        self._starts = 0

    def _find_or_create(self, client: "MlflowClient", events: list[dict[str, Any]]) -> str:
        experiment = experiment_id(client, self.uri)
        identity = run_id(self.run_folder)
        # A deleted run is not found: deleting in the UI and tracking again creates it anew.
        runs = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
        if runs:
            return runs[0].info.run_id
        started = events[0]["time"] if events else (self.run_folder / CONFIG).stat().st_mtime
        name = self.run_folder.resolve().name
        tags = {RUN_TAG: identity} | self._tags
        run = client.create_run(experiment, start_time=int(started * 1000), tags=tags, run_name=name)
        return run.info.run_id

    def _send_parameters(self, client: "MlflowClient") -> None:
        """Send config and environment, flattened; MLflow never changes a parameter, so a resumed run keeps its first ones."""
        from mlflow.entities import Param, RunTag

        config = stored_config(self.run_folder)
        environment = RunFolder(self.run_folder).environment()
        values = dict(flatten(config)) | {f"environment.{key}": value for key, value in flatten(environment)}
        sent = client.get_run(self._run_id).data.params
        params = [Param(key, str(value)[:PARAM_CHARACTERS]) for key, value in values.items() if key not in sent]
        for chunk in chunks(params, PARAMS_A_CALL):
            client.log_batch(self._run_id, params=chunk)
        if commit := environment.get("git_commit"):
            client.log_batch(self._run_id, tags=[RunTag("mlflow.source.git.commit", commit)])

    def _send_data(self, client: "MlflowClient") -> None:
        """Send the manifest of the data (sources, licences, hashes); its own hash is the dataset's digest."""
        from mlflow.entities import Dataset, DatasetInput

        path = RunFolder(self.run_folder).manifest_file()
        if path is None:
            return
        digest = sha256_file(path)[:12]
        inputs = client.get_run(self._run_id).inputs.dataset_inputs
        if not any(entry.dataset.digest == digest for entry in inputs):
            source = json.dumps({"folder": str(path.parent)})
            dataset = Dataset(name=path.parent.name, digest=digest, source_type="local", source=source)
            client.log_inputs(self._run_id, [DatasetInput(dataset, [])])
            client.log_artifact(self._run_id, str(path), "data")

    def _send_evaluations(self, client: "MlflowClient", paths: Iterable[Path]) -> None:
        """Send each evaluation result as a child run with its values, time and file."""
        from mlflow.entities import Metric

        paths = list(paths)
        if not paths:
            return
        experiment = experiment_id(client, self.uri)
        if not self._children:
            runs = client.search_runs(
                [experiment], filter_string=f"tags.`{PARENT_TAG}` = '{self._run_id}'", max_results=5000
            )
            self._children = {run.data.tags.get(EVALUATION_TAG, ""): run.info.run_id for run in runs}
        for path in paths:
            result, name = read_json(path), f"{path.parent.name}/{path.stem}"
            ended = int(result["ended"] * 1000)
            if name not in self._children:
                tags = {**self._tags, PARENT_TAG: self._run_id or "", EVALUATION_TAG: name}
                started = int(result.get("started", result["ended"]) * 1000)
                child = client.create_run(experiment, start_time=started, tags=tags, run_name=name)
                self._children[name] = child.info.run_id
            child_id = self._children[name]
            sent = client.get_run(child_id).data.metrics
            values = [
                Metric(key, value, ended, result["step"]) for key, value in result["metrics"].items() if key not in sent
            ]
            for chunk in chunks(values, METRICS_A_CALL):
                client.log_batch(child_id, metrics=chunk)
            client.log_artifact(child_id, str(path))
            client.set_terminated(child_id, "FINISHED", end_time=ended)

    def _register(self, client: "MlflowClient") -> None:
        """Register the final weights and their model card as a version of the registered model named like the run."""
        from mlflow.exceptions import MlflowException

        card = model_card(self.run_folder)
        if card is None:
            return
        path = self.run_folder / MODEL_CARD
        if not path.is_file() or path.read_text(encoding="utf-8") != card:  # an unchanged file is not rewritten
            write_text(path, card)
        self._send_artifacts(client, self._changed([path]))
        if client.search_model_versions(f"run_id='{self._run_id}'"):
            return
        folder, _ = list(complete_checkpoints(self.run_folder))[-1]
        client.log_artifacts(self._run_id, str(folder / MODEL), "model")
        name = self.run_folder.resolve().name
        with contextlib.suppress(MlflowException):  # it exists already
            client.create_registered_model(name)
        source = f"{client.get_run(self._run_id).info.artifact_uri}/model"
        client.create_model_version(name, source=source, run_id=self._run_id, description=card)

    def _event_points(self, events: Iterable[dict[str, Any]]) -> Iterator[Point]:
        for event in events:
            kind, time, step = event["kind"], event["time"], event.get("step", 0)
            if kind == "step":
                numbers = {key: value for key, value in event.items() if key not in ("kind", "time", "step")}
                for key, value in numbers.items():
                    if isinstance(value, int | float):
                        yield Point(f"train/{key}", value, time, step)
            elif kind == "checkpoint":
                yield Point("train/checkpoint_seconds", event["seconds"], time, step)
            elif kind == "skip":
                self._skipped += 1
                yield Point("train/skipped_steps", self._skipped, time, step)
            elif kind == "start":
                yield Point("train/restarts", self._starts, time, step)
                self._starts += 1

    def _send_points(self, client: "MlflowClient", points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        metrics = []
        latest = {(point.key, point.step): point for point in points}
        for point in latest.values():
            if point.key not in self._sent:
                history = client.get_metric_history(self._run_id, point.key)
                self._sent[point.key] = {metric.step for metric in history}
            if point.step not in self._sent[point.key]:
                self._sent[point.key].add(point.step)
                metrics.append(Metric(point.key, point.value, int(point.time * 1000), point.step))
        for chunk in chunks(metrics, METRICS_A_CALL):
            client.log_batch(self._run_id, metrics=chunk)

    def _changed(self, paths: Iterable[Path]) -> dict[Path, Stamp]:
        """Those of the files that changed since they were sent to MLflow, with their stamps."""
        stamps = {path: found for path in paths if (found := stamp(path))}
        return {path: found for path, found in stamps.items() if self._uploaded.get(path) != found}

    def _send_artifacts(self, client: "MlflowClient", stamps: dict[Path, Stamp]) -> None:
        for path, sent_stamp in stamps.items():
            folder = path.parent.relative_to(self.run_folder).as_posix()
            client.log_artifact(self._run_id, str(path), None if folder == "." else folder)
            self._uploaded[path] = sent_stamp

    def _send_status(self, client: "MlflowClient", events: list[dict[str, Any]]) -> bool:
        """Send the run's status, finished or running, by its last `start` or `finish`; True if finished."""
        marks = [event for event in events if event["kind"] in ("start", "finish")]
        if not marks:
            return False
        finished = marks[-1]["kind"] == "finish"
        if finished:
            client.set_terminated(self._run_id, "FINISHED", end_time=int(marks[-1]["time"] * 1000))
        else:
            client.update_run(self._run_id, "RUNNING")
        return finished
