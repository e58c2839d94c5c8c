"""The record of a run in MLflow, rebuilt from the run's files.

The files are the truth; MLflow is a view of them. Sent values are read back from MLflow itself, so an interrupted replay
resumes where it stopped, and a second one sends nothing.
"""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from ...evals.layout import is_of_average, result_files, stored_config
from ...evals.markdown import to_html
from ...models.common.cached_files import Stamp, is_inside, stamp
from ...models.common.errors import UserError
from ...models.common.files import sha256_file, write_text
from ...models.common.run_layout import CONFIG, ENVIRONMENT, EVENTS, LINEAGE, REPORT, SUPERVISION
from ...pipeline.run.events import EventReader
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.identity import run_id
from ...pipeline.run.reader import RunReader
from ...pipeline.run.untrusted import file_text, flat, text
from .checkpoints import CheckpointModels
from .client import CREATED_TAG, RUN_TAG, default_tracking_uri, experiment_id, mlflow_client, newest_run
from .errors import explain
from .evaluations import EvaluationRuns
from .lineage import send_lineage
from .model_card import FILE as MODEL_CARD
from .model_card import model_card
from .points import EvaluationResult, EventPoints, Point
from .registration import register
from .status import RunStatus
from .values import Refusal, metric, number, params, send

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset

logger = logging.getLogger(__name__)

ARTIFACTS = (CONFIG, ENVIRONMENT, LINEAGE, REPORT, "figures/*.png", "evals/summary.md", "evals/figures/*.png")
# What MLflow answers about a run or experiment that is gone.
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
MOST_CARD = 100_000  # characters
MOST_ARTIFACT_BYTES = 64 << 20  # of a report, a figure or a result
REPORT_PAGE = "report.html"
_named: set[tuple[str, Path, str]] = set()  # values that this process has said MLflow does not take


def track(run_folder: Path, tracking_uri: str | None = None) -> str:
    """Replay a run into MLflow, finished or not; a repetition adds nothing.

    Args:
        tracking_uri: a server, or a sqlite file; `mlflow.db` beside the folder of runs if None.

    Returns:
        the id of the run in MLflow.

    Raises:
        UserError: not a run folder, or MLflow cannot be written; why, and what mends it.
    """
    tracker = Tracker(run_folder, tracking_uri)
    try:
        return tracker.send()
    except UserError:
        raise
    except Exception as error:  # whatever MLflow's client raises: errors of HTTP, SQL, files
        raise UserError(f"{explain(error, tracker.uri)}, and run this again") from error


class Tracker:
    """Sends new events and files of a run folder to MLflow; called repeatedly while the run goes on.

    A value is sent once. A step that is repeated after a crash has the same numbers, so either of its records is right.

    Attributes:
        problem: why the last `sync` failed, and what mends it; empty if it succeeded.
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
        self.problem = ""
        self._tags = tags or {}
        self._outage_logged = outage_logged
        self._reset()

    def sync(self, *, alive: bool | None = True) -> bool:
        """Send new events and files; True if MLflow now has everything in the folder.

        Never raises: training must not end because its record cannot be written. An outage is logged once, and the
        first call that succeeds after it catches up.

        Args:
            alive: whether the run goes on; None to judge it from its heartbeats.
        """
        try:
            self.send(alive=alive)
        except Exception as error:
            self.problem = explain(error, self.uri)
            if not self._outage_logged:
                logger.warning("%s; the run goes on, and a later call catches up", self.problem)
            self._outage_logged = True
            return False
        self.problem, self._outage_logged = "", False
        return True

    def send(self, *, alive: bool | None = None) -> str:
        """Send new events and files; returns MLflow's id of the run, and raises any error. `alive` as in `sync`."""
        with self._lock():
            found_before = self._run_id is not None
            try:
                return self._send(alive)
            except Exception as error:
                # A failed call may have had an effect: the state is read from MLflow again.
                self._reset()
                # What an earlier call found there may be gone for good: then it is made again.
                if not found_before or getattr(error, "error_code", None) not in GONE:
                    raise
                return self._send(alive)

    def _lock(self) -> contextlib.AbstractContextManager:
        """Context that lets one process at a time send a run; takes no lock where the folder belongs to another user."""
        writable = os.access(self.run_folder, os.W_OK)
        return FileLock(self.run_folder / ".tracking.lock") if writable else contextlib.nullcontext()

    def _send(self, alive: bool | None) -> str:
        client = self._client or mlflow_client(self.uri)
        self._client = client
        if self._run_id and client.get_run(self._run_id).info.lifecycle_stage != "active":
            self._reset()  # somebody deleted it in MLflow: it is made again
        events = self._events.read()
        if self._events.damage:
            self._name([("lines", self._events.damage)])
        if self._events.restarted:
            self._points, self._status = EventPoints(), RunStatus()
        self._status.add(events)
        changed = self._changed(result_files(self.run_folder))
        results = self._read_results(changed)
        if self._run_id is None:
            started = events[0]["time"] if events else (self.run_folder / CONFIG).stat().st_mtime
            self._run_id = self._find_or_create(client, started)
            self._send_parameters(client)
            send_lineage(client, experiment_id(client, self.uri), self._run_id, self.run_folder)
            self._data = self._send_data(client)
        experiment = experiment_id(client, self.uri)
        self._models = self._models or CheckpointModels(client, experiment, self._run_id, self.run_folder)
        self._models.send()
        points = [*self._points.read(events), *(point for result in results for point in result.points())]
        self._send_points(client, points)
        self._send_status(client, alive)
        if results:
            children = self._children or EvaluationRuns(client, experiment, self._run_id, self._tags)
            self._children = children
            for result in results:
                model = None if is_of_average(result.path.stem) else self._models.id_of(result.path.parent.name)
                self._name(children.send(result, model, self._data))
        self._send_artifacts(client, changed)
        for pattern in ARTIFACTS:
            self._send_artifacts(client, self._changed(sorted(self.run_folder.glob(pattern))))
        if self._status.finished:  # until then they grow
            files = RunFolder(self.run_folder)
            self._send_artifacts(client, self._changed([files.events_file, files.supervision_file]))
            self._register(client, self._models)
        return self._run_id

    def _reset(self) -> None:
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._events = EventReader.of_any_run(self.run_folder)
        self._points, self._status = EventPoints(), RunStatus()
        self._sent: dict[
            str, dict[int, tuple[int, float]]
        ] = {}  # time (ms) and value at each step that MLflow has, by metric
        self._children: EvaluationRuns | None = None
        self._models: CheckpointModels | None = None
        self._data: Dataset | None = None
        self._uploaded: dict[Path, Stamp] = {}  # time of change and size, by file

    @property
    def _stored_id(self) -> str:
        """MLflow's id of the run, once it was found or made there."""
        assert self._run_id is not None
        return self._run_id

    def _name(self, refusals: Iterable[Refusal]) -> None:
        """Log in one line which values MLflow refuses for good; each value is logged once."""
        new = {key: why for key, why in refusals if (self.uri, self.run_folder, key) not in _named}
        if new:
            _named.update((self.uri, self.run_folder, key) for key in new)
            key, why = next(iter(new.items()))
            more = f" and {len(new) - 1} more" if len(new) > 1 else ""
            logger.warning("MLflow does not take %s of %s%s (%s); the files have it", key, self.run_folder, more, why)

    def _read_results(self, paths: Iterable[Path]) -> list[EvaluationResult]:
        """Read the result files that are complete; log the damaged ones."""
        results, damaged = [], []
        for path in paths:
            try:
                results.append(EvaluationResult.read(path))
            except (UserError, OSError) as error:
                damaged.append((path.relative_to(self.run_folder).as_posix(), str(error)))
        self._name(damaged)
        return results

    def _find_or_create(self, client: "MlflowClient", started: float) -> str:
        experiment = experiment_id(client, self.uri)
        identity = run_id(self.run_folder)
        # A deleted run is not found: deleting in the UI and tracking again creates it anew.
        if found := newest_run(client, experiment, identity):
            return found
        name = self.run_folder.resolve().name
        tags = {RUN_TAG: identity, CREATED_TAG: str(time.time())} | self._tags
        run = client.create_run(experiment, start_time=int(started * 1000), tags=tags, run_name=name)
        return run.info.run_id

    def _send_parameters(self, client: "MlflowClient") -> None:
        """Send config and environment, flattened; MLflow never changes a parameter, so a resumed run keeps its first ones."""
        reader = RunReader(self.run_folder)  # bounded, whatever the files hold
        environment = reader.environment()
        values = flat(reader.config()) | {f"environment.{key}": value for key, value in flat(environment).items()}
        sent = client.get_run(self._stored_id).data.params
        self._name(send(client, self._stored_id, "params", [item for item in params(values) if item.key not in sent]))
        if commit := text(environment.get("git_commit"), 100):
            client.set_tag(self._stored_id, "mlflow.source.git.commit", commit)

    def _send_data(self, client: "MlflowClient") -> "Dataset | None":
        """Send the manifest of the data (sources, licences, hashes) as a dataset; its own hash is the digest."""
        from mlflow.entities import Dataset, DatasetInput

        path = RunFolder(self.run_folder).manifest_file()
        if path is None:
            return None
        digest, source = sha256_file(path)[:12], json.dumps({"folder": str(path.parent)})
        dataset = Dataset(name=path.parent.name, digest=digest, source_type="local", source=source)
        inputs = client.get_run(self._stored_id).inputs
        if not any(entry.dataset.digest == digest for entry in (inputs.dataset_inputs if inputs else ())):
            client.log_inputs(self._stored_id, [DatasetInput(dataset, [])])
            client.log_artifact(self._stored_id, str(path), "data")
        return dataset

    def _register(self, client: "MlflowClient", models: CheckpointModels) -> None:
        """Register the final weights and their model card as a version of the registered model named like the run."""
        path = self.run_folder / MODEL_CARD
        card = None if self._is_kept(path) else model_card(self.run_folder)
        if card is not None and (not path.is_file() or path.read_text(encoding="utf-8") != card):
            with contextlib.suppress(UserError):  # somebody else's folder
                write_text(path, card)
        if card is None and path.is_file():
            card = file_text(path, MOST_CARD)
        if card is None:
            return
        self._send_artifacts(client, self._changed([path]))
        register(client, self._stored_id, self.run_folder, card, models)

    def _is_kept(self, path: Path) -> bool:
        """Whether to keep the existing model card: a new one would lack the dataset and its licences, which are not on this
        machine."""
        return path.is_file() and RunFolder(self.run_folder).manifest_file() is None

    def _send_points(self, client: "MlflowClient", points: Iterable[Point]) -> None:
        metrics, refused = [], []
        latest = {(point.key, point.step): point for point in points}
        for point in latest.values():
            value, milliseconds = number(point.value), int(point.time * 1000)
            if value is None:
                refused.append((point.key, f"{json.dumps(point.value)[:40]} is no finite number"))
                continue
            if point.key not in self._sent:
                history = client.get_metric_history(self._stored_id, point.key)
                stored = [(entry.step, entry.timestamp, entry.value) for entry in history]
                self._sent[point.key] = {step: (time, old) for step, time, old in sorted(stored)}
            sent = self._sent[point.key].get(point.step)
            if sent and (not point.changes or math.isclose(sent[1], value)):
                continue
            if sent:  # of several values at a step, MLflow shows the one of the latest time
                milliseconds = max(milliseconds, sent[0] + 1)
            if item := metric(point.key, value, milliseconds, point.step):
                self._sent[point.key][point.step] = (milliseconds, value)
                metrics.append(item)
            else:
                refused.append((point.key, f"time {point.time} or step {point.step} is out of range"))
        self._name([*refused, *send(client, self._stored_id, "metrics", metrics)])

    def _changed(self, paths: Iterable[Path]) -> dict[Path, Stamp]:
        """The files that changed since they were sent to MLflow, with their stamps."""
        stamps = {path: found for path in paths if (found := stamp(path))}
        return {path: found for path, found in stamps.items() if self._uploaded.get(path) != found}

    def _send_artifacts(self, client: "MlflowClient", stamps: dict[Path, Stamp]) -> None:
        for path, sent_stamp in stamps.items():
            folder = path.parent.relative_to(self.run_folder).as_posix()
            if refusal := self._why_not(path):
                self._name([(path.relative_to(self.run_folder).as_posix(), refusal)])
            else:
                client.log_artifact(self._stored_id, str(path), None if folder == "." else folder)
                if path.name == REPORT:  # MLflow shows Markdown as text
                    page = to_html(
                        file_text(path, MOST_ARTIFACT_BYTES), self.run_folder, self.run_folder.resolve().name
                    )
                    client.log_text(self._stored_id, page, REPORT_PAGE)
            self._uploaded[path] = sent_stamp

    def _why_not(self, path: Path) -> str:
        """The reason why a file is not uploaded; empty if it is uploaded."""
        if not is_inside(path, self.run_folder):
            return "it is a link that leads out of the run"
        if not path.is_file():
            return "it is no regular file"
        large = path.stat().st_size > MOST_ARTIFACT_BYTES and path.name not in (EVENTS, SUPERVISION)
        return "" if os.access(path, os.R_OK) and not large else "it cannot be read" if not large else "it is too large"

    def _send_status(self, client: "MlflowClient", alive: bool | None) -> None:
        """Send the run's status and, unless it goes on, the time of its end."""
        found = self._status.now(self.run_folder, alive)
        if found is None:
            return
        status, ended = found
        stored = client.get_run(self._stored_id).info
        if ended is None and stored.status != status:
            client.update_run(self._stored_id, status)
        elif ended is not None and (stored.status, stored.end_time) != (status, int(ended * 1000)):
            client.set_terminated(self._stored_id, status, end_time=int(ended * 1000))
