"""When a worker group is started again, what is said of its loss, and when it grows."""

import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from echo_lm.models.common import retries
from echo_lm.models.common.files import write_json, write_text
from echo_lm.orchestration.ray_train import policies
from echo_lm.orchestration.ray_train.policies import (
    GrowAtCheckpoints,
    Hang,
    RestartPolicy,
    may_hide_dead_workers,
    worker_failures,
)
from echo_lm.pipeline.monitoring.heartbeat import HeartbeatRecord
from echo_lm.pipeline.run.events import read_events
from echo_lm.pipeline.run.folder import RunFolder

BEATS = [HeartbeatRecord("g", rank, 3, f"node-{rank}", rank, 5, 0.0, "") for rank in range(3)]
DIED = WorkerHealthCheckFailedError("a health check failed", ActorDiedError())
RESET = RuntimeError("Traceback\nConnection closed by peer")


def test_the_dead_are_named_and_those_who_lost_their_connection_are_not():
    error = WorkerGroupError("", {0: RESET, 1: DIED, 2: RESET})
    alive = {"node-0", "node-1", "node-2"}
    assert worker_failures(error, BEATS, alive) == [("worker", "node-1", "rank 1 on node-1 died")]
    assert worker_failures(error, BEATS, alive - {"node-1"}) == [("node", "node-1", "rank 1 on node-1: the node died")]
    silent = WorkerGroupError("", {2: WorkerHealthCheckTimeoutError("hanging for 12 s")})
    assert worker_failures(silent, BEATS, alive) == [("worker", "node-2", "rank 2 on node-2 does not answer")]
    only = WorkerGroupError("", {0: RESET})
    assert worker_failures(only, BEATS, alive) == [("worker", "node-0", "rank 0 on node-0: Connection closed by peer")]
    assert worker_failures(only, BEATS, alive, {0, 2}) == [("worker", "node-2", "rank 2 on node-2 fell silent")]
    assert worker_failures(only, BEATS, alive - {"node-2"}, {2}) == [
        ("node", "node-2", "rank 2 on node-2: the node died")
    ]
    assert may_hide_dead_workers(only, BEATS)
    assert not may_hide_dead_workers(error, BEATS), "one is known to be dead"
    assert not may_hide_dead_workers(WorkerGroupError("", dict.fromkeys(range(3), RESET)), BEATS), (
        "all have told what they know"
    )
    assert worker_failures(ControllerError(Hang("rank 1 on node-1")), BEATS, alive) == [], (
        "it was told when it was seen"
    )


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setattr(policies.ray, "nodes", lambda: [{"NodeName": "node-0", "Alive": True}])
    monkeypatch.setattr(retries, "pause_seconds", lambda failures: 0.01)
    return RunFolder(tmp_path)


def test_restarts_are_counted_from_the_last_checkpoint_on(run):
    policy = RestartPolicy(FailureConfig(), run, max_restarts=2, wait_seconds=60)
    error = WorkerGroupError("", {0: DIED})
    for number in range(3):
        write_text(run.latest_file, f"step_{number:08d}")
        assert [policy.make_decision(error) for _ in range(2)] == [FailureDecision.RETRY] * 2
    assert policy.make_decision(error) == FailureDecision.RAISE
    assert [event["kind"] for event in read_events(run.events_file)] == ["lost"] * 7


def test_who_fell_silent_is_told_when_the_others_fail_before_ray_knows_of_a_death(run, monkeypatch):
    """Rank 1's machine is gone; rank 0 lost its connection to it; rank 2 waits in a collective, and beats."""
    run.heartbeats.mkdir()

    def heartbeat(rank: int) -> None:
        write_json(run.heartbeats / f"rank_{rank:05d}.json", asdict(replace(BEATS[rank], time=time.time())))

    for rank in range(3):
        heartbeat(rank)
    slept = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: (slept.append(seconds), heartbeat(2)))
    monkeypatch.setattr(policies, "time", clock)
    RestartPolicy(FailureConfig(), run, max_restarts=5, wait_seconds=60).make_decision(WorkerGroupError("", {0: RESET}))
    assert slept == [policies.SILENT_SECONDS]
    (event,) = read_events(run.events_file)
    assert (event["what"], event["name"]) == ("node", "node-1"), "the cluster has node-0 alone"


def test_a_users_mistake_is_not_tried_again(run):
    write_json(run.error_file, {"message": "the disk is full"})
    policy = RestartPolicy(FailureConfig(), run, max_restarts=5, wait_seconds=60)
    assert policy.make_decision(WorkerGroupError("", {0: RESET})) == FailureDecision.RAISE


def test_a_worker_group_without_room_waits_for_a_node_and_not_for_ever(run):
    no_room = ControllerError(WorkerGroupStartupTimeoutError(4))
    policy = RestartPolicy(FailureConfig(), run, max_restarts=0, wait_seconds=60)
    assert [policy.make_decision(no_room) for _ in range(5)] == [FailureDecision.RETRY] * 5
    assert RestartPolicy(FailureConfig(), run, 0, wait_seconds=0).make_decision(no_room) == FailureDecision.RAISE


class OfNodes(GrowAtCheckpoints):
    """With a cluster of so many nodes of one CPU, instead of asking Ray for it."""

    nodes = 4

    def _maybe_send_resource_request(self) -> None:
        pass

    def _get_reserved_resources(self):
        return {f"node-{number}": {"CPU": 1.0} for number in range(self.nodes)}


def test_it_takes_what_the_batch_divides_by_and_grows_right_after_a_checkpoint(run):
    scaling = ScalingConfig(
        num_workers=(2, 4), resources_per_worker={"CPU": 1.0}, elastic_resize_monitor_interval_s=0.0
    )
    policy = OfNodes(scaling, run, [2, 4])
    policy.nodes = 3
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    policy.nodes = 1
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision), "too few: it waits"
    write_text(run.latest_file, "step_00000020")
    two = SimpleNamespace(num_workers=2, start_time=0.0)
    policy.nodes = 3
    assert isinstance(policy.make_decision_for_running_worker_group(two, None), NoopDecision)
    policy.nodes = 4
    for _ in range(3):
        assert isinstance(policy.make_decision_for_running_worker_group(two, None), NoopDecision), "not before"
    write_text(run.latest_file, "step_00000040")
    decision = policy.make_decision_for_running_worker_group(two, None)
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == 4
