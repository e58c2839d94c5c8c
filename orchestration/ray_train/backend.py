"""The Ray Train backend of worker groups: node names, network interfaces and checks, then torch's process group. Imports Ray."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from ...models.common.errors import UserError
from ...models.common.files import write_json
from ...models.common.validation import first_line
from ...pipeline.monitoring.heartbeat import start_worker_group
from ...pipeline.run.folder import RunFolder
from . import node_checks
from .preflight import CALL_SECONDS, WorkerGroup, check_all_reduce, check_nodes


@dataclass
class WorkerGroupConfig(TorchConfig):
    """`TorchConfig` of a worker group for the run at `run_path`, whose model has `parameters` parameters."""

    run_path: str = ""
    parameters: int = 0

    @property
    def backend_cls(self) -> type["WorkerGroupBackend"]:
        return WorkerGroupBackend


class WorkerGroupBackend(_TorchBackend):
    """Sets up a worker group, in Ray Train's controller, each time after it was placed and before it trains."""

    def on_start(self, worker_group: Any, backend_config: WorkerGroupConfig) -> None:
        run = RunFolder(backend_config.run_path)
        group = worker_group_of(worker_group)
        token = uuid.uuid4().hex
        start_worker_group(run, token)
        try:
            places = zip(group.nodes, group.addresses, strict=True)
            group.run(node_checks.set_worker_environment, [(node, token, address) for node, address in places])
            check_nodes(group, run.path, backend_config.parameters, backend_config.backend == "nccl")
            super().on_start(worker_group, backend_config)
            check_all_reduce(group)
        except UserError as error:
            write_json(run.error_file, {"message": str(error)})
            raise

    def on_shutdown(self, worker_group: Any, backend_config: WorkerGroupConfig) -> None:
        """Do nothing: `train` destroys its process group, and failed workers are killed. Ray would wait for hung ones."""


def worker_group_of(worker_group: Any) -> WorkerGroup:
    """Wrap Ray Train's worker group for the preflight; Ray numbers ranks by node, within a node by GPU."""
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    workers = worker_group.get_workers()
    nodes = [names.get(worker.metadata.node_id) or worker.metadata.node_ip for worker in workers]
    addresses = [worker.metadata.node_ip for worker in workers]

    def run(function: Callable[..., Any], arguments: Sequence[tuple]) -> list[Any]:
        calls = [
            worker.execute_async(function, *rank_arguments)
            for worker, rank_arguments in zip(workers, arguments, strict=True)
        ]
        results = []
        for rank, call in enumerate(calls):
            where = f"node {nodes[rank]} (rank {rank})"
            try:
                results.append(ray.get(call, timeout=CALL_SECONDS))
            except GetTimeoutError as error:
                raise UserError(f"{where} does not answer {function.__name__} in {CALL_SECONDS:.0f} s") from error
            except RayTaskError as error:  # a dead worker raises another error, and the worker group is placed again
                raise UserError(f"{where} cannot run Echo-LM: {first_line(error.cause)}") from error
        return results

    return WorkerGroup(nodes, addresses, run)
