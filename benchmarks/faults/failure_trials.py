"""Failure trials: a component of a cluster is killed at a random moment of a run, which must end as without the failure.

    python -m benchmarks.faults.failure_trials --set-up nodes --trials 10 --out benchmarks/results

Each trial is `echo-lm run` on a cluster of `ray start` nodes that come back as services do, with an MLflow server of its own. A
node is the machine's own address space (`nodes`: a head and three nodes, one of them spare) or two hosts that are network
namespaces (`netns`: a head and a node on the first, two nodes on the second; root).

A row: what was killed at which step; seconds until the first word of it in the run folder (`detect`), until training made a step
again (`recover`); seconds from the first step to the last (`train`), against those of undisturbed runs (`ideal`); whether the
losses are the undisturbed ones to 1e-5, and what was lost or doubled of evaluations and of MLflow's values.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.evals.layout import result_files
from echo_lm.models.common.files import write_json
from echo_lm.pipeline.config import RunConfig, load_config
from echo_lm.pipeline.launch import launch
from echo_lm.pipeline.monitoring.heartbeat import read_heartbeats
from echo_lm.pipeline.run.events import read_events, steps
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.ray_nodes import Host, Node, kill_tree, two_hosts, wait_for_nodes

KINDS = ("worker", "node", "head", "mlflow", "hang")
HANG_SECONDS = 30
# About 40 s of training on two cores. A worker group whose head dies trains on for as long as its nodes wait for a new head.
STEPS, EVERY, EVALUATED = 150, 10, 50
OVERRIDES = [
    f"train.steps={STEPS}",
    "train.batch_tokens=2048",
    f"run.checkpoint_every={EVERY}",
    f"evaluation.every={EVALUATED // EVERY}",
    "run.workers=2",
    f"run.hang_seconds={HANG_SECONDS}",
]
DEADLINE = 900
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


class MlflowServer:
    """`mlflow server` on a host's loopback, which can be killed and restarted."""

    def __init__(self, folder: Path, host: Host):
        self._host, self._folder = host, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        command = [*self._host.prefix, sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self._folder / "mlflow.log", "ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self._folder
            )

    def kill(self) -> None:
        assert self.process
        kill_tree(self.process.pid)


@contextlib.contextmanager
def cluster(set_up: str, folder: Path):
    """The host of the head, its address, and the nodes by name; the head first."""
    with contextlib.ExitStack() as stack:
        if set_up == "netns":
            a, b = stack.enter_context(two_hosts())
            places = [a, a, b, b]
        else:
            places = [Host(address=f"127.0.0.{number}") for number in range(2, 6)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            head = f"{places[0].address}:{free.getsockname()[1]}"
        nodes = [
            Node(f"node-{number}", head, host, is_head=number == 0, cpus=int(number > 0), folder=folder)
            for number, host in enumerate(places)
        ]
        try:
            wait_for_nodes(places[0], head, len(nodes))
            yield places[0], head, nodes
        finally:
            for node in nodes:
                node.stop()


def play(kind: str | None, root: Path, name: str, place: tuple, mlflow: MlflowServer, generator: random.Random) -> dict:
    """Run once, with one kill if `kind` is given; returns the row."""
    host, head, nodes = place
    config = load_config("smoke", [*OVERRIDES, f"name={name}"])
    run = RunFolder(root / "runs" / name)
    command = [
        *host.prefix,
        sys.executable,
        "-c",
        "from echo_lm.orchestration.cli.main import main; main()",
        "run",
        "smoke",
    ]
    command += [*OVERRIDES, f"name={name}", "--address", head, "--tracking-uri", mlflow.uri]
    command += ["--runs", str(root / "runs"), "--data", str(root / "data")]
    at = generator.randint(2, STEPS - 2)
    row: dict = {"name": name, "kind": kind or "none", "at_step": at}
    with open(root / f"{name}.out", "wb") as out:
        process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if kind:
                row |= disturb(kind, run, at, nodes, mlflow, generator, process)
            row["exit"] = process.wait(timeout=DEADLINE)
        except (subprocess.TimeoutExpired, TimeoutError) as error:
            row |= {"exit": None, "error": str(error)}
        finally:
            kill_tree(process.pid)
    return row | evaluate_trial(run, config, row, mlflow)


def disturb(
    kind: str,
    run: RunFolder,
    at: int,
    nodes: list[Node],
    mlflow: MlflowServer,
    chance: random.Random,
    process: subprocess.Popen,
) -> dict:
    """Kill a component once the run has made step `at`; returns its time and name."""
    deadline = time.monotonic() + DEADLINE
    while not any(event["kind"] == "step" and event["step"] >= at for event in read_events(run.events_file)):
        if time.monotonic() > deadline or process.poll() is not None:
            raise TimeoutError(f"step {at} was never made")
        time.sleep(0.02)
    heartbeat = chance.choice(read_heartbeats(run))
    if kind in ("worker", "hang"):
        killed, victim = time.time(), f"rank {heartbeat.rank} on {heartbeat.node}"
        os.kill(heartbeat.pid, signal.SIGKILL if kind == "worker" else signal.SIGSTOP)
    elif kind == "node":
        killed, victim = time.time(), heartbeat.node
        next(node for node in nodes if node.name == heartbeat.node).kill()
    elif kind == "head":
        killed, victim = time.time(), nodes[0].name
        nodes[0].kill()
    else:
        killed, victim = time.time(), mlflow.uri
        mlflow.kill()
        time.sleep(3)
        mlflow.start()
    return {"killed": killed, "victim": victim}


def evaluate_trial(run: RunFolder, config: RunConfig, row: dict, mlflow: MlflowServer) -> dict:
    """Evaluate a trial from the run's files and MLflow: recovery times, lost or doubled results, losses."""
    events = read_events(run.events_file)
    step_events = [event for event in events if event["kind"] == "step"]
    row_fields: dict = {"attempts": sum(event["kind"] == "attempt" for event in events)}
    row_fields["starts"] = [event["step"] for event in events if event["kind"] == "start"]
    row_fields["train"] = step_events[-1]["time"] - step_events[0]["time"] if step_events else None
    if "killed" in row and step_events:
        killed = row["killed"]
        detected = [e["time"] for e in events if e["kind"] in ("lost", "hang") and e["time"] > killed]
        restarted = [e["time"] for e in events if e["kind"] == "start" and e["time"] > killed]
        steps_after = [e["time"] for e in step_events if restarted and e["time"] > restarted[0]]
        row_fields |= {
            "detect": detected[0] - killed if detected else None,
            "recover": steps_after[0] - killed if steps_after else None,
        }
        row_fields["repeated"] = len(step_events) - len({event["step"] for event in step_events})
    results = {(path.parent.name, path.stem) for path in result_files(run.path)}
    expected = {(f"step_{step:08d}", "language") for step in range(EVALUATED, STEPS + 1, EVALUATED)}
    evaluated = [(event["step"], event["suite"]) for event in events if event["kind"] == "evaluation"]
    row_fields |= {
        "evaluations_lost": len(expected - results),
        "evaluations_doubled": len(evaluated) - len(set(evaluated)),
    }
    row_fields["losses"] = [event["loss"] for event in steps(events)]
    row_fields |= mlflow_counts(run, mlflow)
    return row_fields


def mlflow_counts(run: RunFolder, mlflow: MlflowServer) -> dict:
    """The number of values that MLflow lacks or has twice, from its database, which needs no server."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{mlflow._folder / 'server.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [r for r in client.search_runs(experiments) if r.info.run_name == run.path.name]
    if len(runs) != 1:
        return {"mlflow_runs": len(runs)}
    history = [point.step for point in client.get_metric_history(runs[0].info.run_id, "train/loss")]
    return {
        "mlflow_runs": 1,
        "mlflow_lost": STEPS - len(set(history)),
        "mlflow_doubled": len(history) - len(set(history)),
    }


def undisturbed(root: Path) -> list[float]:
    """The losses of the same training in plain processes."""
    config = load_config("smoke", OVERRIDES)
    reference = RunFolder(root / "alone")
    reference.prepare(config, root / "data" / config.data.name)
    launch(reference, config)
    return [event["loss"] for event in steps(read_events(reference.events_file))]


def succeeded(row: dict) -> bool:
    """Whether the run ended as an undisturbed one."""
    return (
        row["exit"] == 0
        and row["equal"]
        and not row["evaluations_lost"]
        and not row["evaluations_doubled"]
        and row.get("mlflow_lost") == 0
        and row.get("mlflow_doubled") == 0
    )


def main() -> int:
    """Play the trials; rows go to `out` after each. 1 if any went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set-up", choices=("nodes", "netns"), default="nodes")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["worker", "node", "head", "mlflow"])
    parser.add_argument("--undisturbed", type=int, default=1, help="runs that the ideal time is the mean of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--keep", action="store_true", help="leave the run folders")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    root = Path(tempfile.mkdtemp(prefix="trials-"))
    path = arguments.out / f"failures_{arguments.set_up}_{time.strftime('%Y-%m-%d')}.json"
    prepare(load_config("smoke").data, root / "data")
    reference = undisturbed(root)
    kinds = [None] * arguments.undisturbed + [
        arguments.kinds[number % len(arguments.kinds)] for number in range(arguments.trials)
    ]
    rows: list[dict] = []
    with cluster(arguments.set_up, root) as place:
        mlflow = MlflowServer(root, place[0])
        try:
            for number, kind in enumerate(kinds):
                row = play(kind, root, f"trial-{number}", place, mlflow, chance)
                losses = row.pop("losses")
                row["equal"] = len(losses) == len(reference) and all(
                    abs(a - b) <= 1e-5 * abs(b) for a, b in zip(losses, reference, strict=True)
                )
                row |= {"set_up": arguments.set_up, "good": succeeded(row), "load": os.getloadavg()[0]}
                rows.append(row)
                ideal = [r["train"] for r in rows if r["kind"] == "none" and r["train"]]
                for r in rows:
                    r["ideal"] = sum(ideal) / len(ideal) if ideal else None
                write_json(path, {"hardware": f"{psutil.cpu_count()} CPU cores", "steps": STEPS, "rows": rows})
                print(json.dumps(row), flush=True)
        finally:
            mlflow.kill()
    if not arguments.keep and all(row["good"] for row in rows):
        shutil.rmtree(root)
    else:
        print(f"run folders: {root}")
    return 0 if all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
