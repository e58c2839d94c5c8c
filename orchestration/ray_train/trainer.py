"""Training on Ray Train workers, which are placed together and restarted together when one dies."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models.accounting import count_parameters
from ...models.common.errors import UserError
from ...models.common.files import disk_is_full, no_space
from ...pipeline.compilation.beside import start_compilation
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder

# Seconds; Ray Train's own are 2 and 60. A worker group that a dead node leaves incomplete is placed again after the second.
POLL_SECONDS, PLACE_SECONDS = 1.0, 30.0
GROW_SECONDS = 10.0  # between checks whether an elastic worker group could be larger


def train_worker_group(run: RunFolder, config: RunConfig) -> None:
    """Train `run` to its end on `config.run.workers` Ray Train workers; blocks.

    Ray packs them onto as few nodes as it can and numbers them node by node. A worker group that loses a worker or hangs is started
    again from the last complete checkpoint in the run folder, which is on storage that all nodes share; with
    `run.min_workers` on as many workers as there is room for.

    Raises:
        UserError: an error that a worker recorded in the run folder, too few GPUs, or a worker group that
            failed `run.max_restarts` times in a row.
    """
    import ray
    from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
    from ray.train import RunConfig as RayRunConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    from .backend import WorkerGroupConfig
    from .policies import GrowAtCheckpoints, HangCallback, RestartPolicy, WorkerGroupTrainer

    run.error_file.unlink(missing_ok=True)
    os.environ |= {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_SECONDS),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(config.run.hang_seconds),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(PLACE_SECONDS),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that warns training functions, and ours does not ask it
    }
    counts = config.worker_counts()
    resources, use_gpu = worker_resources(config, ray.cluster_resources())
    scaling = ScalingConfig(
        num_workers=(counts[0], counts[-1]) if len(counts) > 1 else config.run.workers,
        use_gpu=use_gpu,
        resources_per_worker=resources,
        placement_strategy="PACK",
        elastic_resize_monitor_interval_s=GROW_SECONDS,
    )
    failures = FailureConfig(max_failures=-1)  # RestartPolicy counts them
    absolute = RunFolder(run.path.resolve())
    hang_callback: Any = HangCallback(absolute, config.run.hang_seconds)  # declared are callbacks of users alone
    trainer = WorkerGroupTrainer(
        _train_worker,
        train_loop_config={"run_path": str(absolute.path)},
        torch_config=WorkerGroupConfig(
            backend="nccl" if use_gpu else "gloo", run_path=str(absolute.path), parameters=_parameters(config)
        ),
        scaling_config=scaling,
        run_config=RayRunConfig(
            name=f"{config.name}-{time.time_ns()}",  # Ray would restore a run of a used name; this one resumes from its own files
            storage_path=str(absolute.path / "ray"),
            failure_config=failures,
            callbacks=[hang_callback],
        ),
        failure_policy=RestartPolicy(failures, absolute, config.run.max_restarts, config.run.cluster_wait_seconds),
        scaling_policy=GrowAtCheckpoints(scaling, absolute, counts) if len(counts) > 1 else None,
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        run.raise_recorded_error()
        if disk_is_full(run.path):  # the error could not be recorded
            raise no_space(run.path) from error
        if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            raise UserError(
                f"the cluster had no room for {counts[0]} workers of {run.path} for {config.run.cluster_wait_seconds:.0f} s "
                "(run.cluster_wait_seconds): add nodes, or set run.workers or run.min_workers lower; the same command goes on"
            ) from error
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"training of {run.path} failed {config.run.max_restarts + 1} times in a row without a new checkpoint "
            f"(last: {reason}); the last complete checkpoint is kept, the same command goes on from it"
        ) from error


def worker_resources(config: RunConfig, cluster: Mapping[str, float]) -> tuple[dict[str, float], bool]:
    """The Ray resources of a worker, and whether it uses a GPU: one each, if the cluster has any and `run.device` allows.

    Raises:
        UserError: fewer GPUs than workers.
    """
    run = config.run
    gpus = int(cluster.get("GPU", 0))
    use_gpu = run.device == "cuda" or (run.device == "auto" and gpus > 0)
    least = config.worker_counts()[0]
    if use_gpu and gpus < least:
        raise UserError(
            f"run.workers={run.workers} needs a GPU each, the cluster has {gpus}: "
            "take fewer, set run.min_workers, or run.device=cpu"
        )
    cores = cluster.get("CPU", 1) / run.workers
    return {"CPU": min(1.0, cores)} | ({"GPU": 1.0} if use_gpu else {}), use_gpu


def _parameters(config: RunConfig) -> int:
    return count_parameters(config.model.resolve(config.data.tokenizer.vocab_size)).total


def _train_worker(settings: dict[str, Any]) -> None:
    run_path = Path(settings["run_path"])
    compilation = start_compilation(run_path)
    from ...pipeline.loop import train

    train(run_path, compilation)
